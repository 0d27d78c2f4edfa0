/* What the test programs share. */
#ifndef CHECK_H
#define CHECK_H

#include <mdm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                          \
    do {                                                                          \
        if (!(condition)) {                                                       \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                              \
        }                                                                         \
    } while (0)

/* The call succeeds; its last argument is &error. */
#define OK(call)                                                                             \
    do {                                                                                     \
        mdm_error *error = (mdm_error *)&error;                                              \
        mdm_status status = (call);                                                          \
        if (status != MDM_OK) {                                                              \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, mdm_status_name(status), \
                    mdm_error_message(error));                                               \
            exit(1);                                                                         \
        }                                                                                    \
        CHECK(error == NULL);                                                                \
    } while (0)

/* The call fails with this status and says something that contains these words; its last argument is &error. */
#define FAILS(expected, words, call)                                                             \
    do {                                                                                         \
        mdm_error *error = NULL;                                                                 \
        mdm_status status = (call);                                                              \
        if (status != (expected) || mdm_error_status(error) != (expected) ||                     \
            strstr(mdm_error_message(error), (words)) == NULL) {                                 \
            fprintf(stderr, "%s:%d: %s instead of %s: %s\n", __FILE__, __LINE__,                 \
                    mdm_status_name(status), mdm_status_name(expected), mdm_error_message(error)); \
            exit(1);                                                                             \
        }                                                                                        \
        mdm_error_free(error);                                                                   \
    } while (0)

#if defined(__SANITIZE_ADDRESS__)
#define ADDRESS_SANITIZER
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ADDRESS_SANITIZER
#endif
#endif

static inline const char *in_folder(const char *folder, const char *name) {
    static char paths[4][1024];
    static int next = 0;
    next = (next + 1) % 4;
    snprintf(paths[next], sizeof paths[next], "%s/%s", folder, name);
    return paths[next];
}

/* A generator of its own, so that runs repeat. */
static inline uint32_t random32(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33) ^ (uint32_t)(*state >> 48);
}

static inline mdm_image grey_image(const unsigned char *pixels, uint32_t width, uint32_t height) {
    mdm_image image = MDM_IMAGE_INIT;
    image.pixels = pixels;
    image.pixels_size = (size_t)width * height;
    image.width = width;
    image.height = height;
    image.format = MDM_PIXEL_GREY8;
    return image;
}

static inline mdm_result labels_result(unsigned char *labels, size_t size) {
    mdm_result result = MDM_RESULT_INIT;
    result.labels = labels;
    result.labels_size = size;
    return result;
}

#endif
