/*
 * The C side of main.rs: segments an image whenever a byte comes in, and says how many seconds that took.
 *
 * usage: overhead MODEL IMAGE WIDTH HEIGHT (bytes of RGB)
 */
#define _POSIX_C_SOURCE 200809L
#include <mdm.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static void check(mdm_status status, mdm_error *const *error) {
    if (status != MDM_OK) {
        fprintf(stderr, "%s\n", mdm_error_message(*error));
        exit(1);
    }
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

int main(int count, char **arguments) {
    if (count != 5) return 2;
    mdm_error *error = NULL;
    mdm_model *model = NULL;
    mdm_device *device = NULL;
    mdm_segmenter *segmenter = NULL;
    mdm_image image = MDM_IMAGE_INIT;
    mdm_result result = MDM_RESULT_INIT;
    image.width = (uint32_t)atol(arguments[3]);
    image.height = (uint32_t)atol(arguments[4]);
    image.format = MDM_PIXEL_RGB8;
    image.pixels_size = (size_t)image.width * image.height * 3;
    result.labels_size = (size_t)image.width * image.height;
    unsigned char *pixels = malloc(image.pixels_size);
    result.labels = malloc(result.labels_size);
    FILE *file = fopen(arguments[2], "rb");
    if (!pixels || !result.labels || !file || fread(pixels, 1, image.pixels_size, file) != image.pixels_size) return 1;
    fclose(file);
    image.pixels = pixels;
    check(mdm_model_open(arguments[1], &model, &error), &error);
    check(mdm_device_open("cpu", NULL, &device, &error), &error);
    check(mdm_segmenter_new(model, device, NULL, &segmenter, &error), &error);
    while (getchar() != EOF) {
        double start = now();
        check(mdm_segmenter_run(segmenter, &image, &result, NULL, NULL, &error), &error);
        double seconds = now() - start;
        unsigned long sum = 0;
        for (size_t i = 0; i < result.labels_size; i++) sum = sum * 31 + ((unsigned char *)result.labels)[i];
        printf("%.9f %lu\n", seconds, sum);
        fflush(stdout);
    }
    mdm_segmenter_free(segmenter);
    mdm_device_free(device);
    mdm_model_free(model);
    free(result.labels);
    free(pixels);
    return 0;
}
