/*
 * Segments one image: segment MODEL IMAGE.ppm MASK.pgm [MICRONS_PER_PIXEL]
 *
 * The image is a binary PPM or PGM of 8 or 16 bits. The mask is a PGM whose values are indices of the model's classes; most
 * viewers show the first class black and the last white. Where libmdm is installed:
 *
 *     cc segment.c -o segment $(pkg-config --cflags --libs mdm)
 */
#include <ctype.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mdm.h>

/* Says what went wrong, if anything did. */
static int failed(mdm_status status, mdm_error **error) {
    if (status == MDM_OK) return 0;
    fprintf(stderr, "segment: %s\n", mdm_error_message(*error));
    mdm_error_free(*error);
    *error = NULL;
    return 1;
}

static int complain(const char *path, const char *reason) {
    fprintf(stderr, "segment: %s: %s\n", path, reason);
    return 0;
}

/* A number of a header, with the one white space behind it; 0, which no header may hold, where there is none. */
static uint32_t header_number(FILE *file) {
    uint32_t number = 0;
    int c = getc(file);
    while (c == '#' || isspace(c)) {
        if (c == '#') {
            do c = getc(file);
            while (c != '\n' && c != EOF);
        } else {
            c = getc(file);
        }
    }
    for (; c >= '0' && c <= '9'; c = getc(file)) {
        if (number > 100000000) return 0;
        number = 10 * number + (uint32_t)(c - '0');
    }
    return isspace(c) ? number : 0;
}

/* Brings samples that end at `highest` to the whole range of their type, in this machine's byte order. */
static void stretch(unsigned char *bytes, size_t samples, uint32_t highest) {
    for (size_t i = 0; i < samples; i++) {
        uint32_t value = highest < 256 ? bytes[i] : (uint32_t)bytes[2 * i] << 8 | bytes[2 * i + 1];
        if (value > highest) value = highest;
        if (highest < 256) {
            bytes[i] = (unsigned char)((value * 255 + highest / 2) / highest);
        } else {
            uint16_t wide = (uint16_t)(((uint64_t)value * 65535 + highest / 2) / highest);
            memcpy(bytes + 2 * i, &wide, 2);
        }
    }
}

/* Reads a PPM or PGM; the pixels are to be freed. 1 if all went well. */
static int read_image(const char *path, mdm_image *image, unsigned char **pixels) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) return complain(path, strerror(errno));
    int fine = 0, magic = getc(file) == 'P' ? getc(file) : EOF;
    uint32_t width = 0, height = 0, highest = 0;
    if (magic == '5' || magic == '6') {
        width = header_number(file);
        height = header_number(file);
        highest = header_number(file);
    }
    size_t sample = highest < 256 ? 1 : 2, samples = magic == '6' ? 3 : 1;
    if (width == 0 || height == 0 || highest == 0 || highest > 65535) {
        complain(path, "not a binary PPM or PGM");
    } else if (height > SIZE_MAX / 6 / width) {
        complain(path, "more pixels than fit into memory");
    } else {
        samples *= (size_t)width * height;
        *pixels = malloc(samples * sample);
        if (*pixels == NULL) {
            complain(path, "more pixels than fit into memory");
        } else if (fread(*pixels, sample, samples, file) != samples) {
            complain(path, ferror(file) ? strerror(errno) : "ends before its last pixel");
        } else {
            stretch(*pixels, samples, highest);
            image->pixels = *pixels;
            image->pixels_size = samples * sample;
            image->width = width;
            image->height = height;
            if (magic == '6') image->format = sample == 1 ? MDM_PIXEL_RGB8 : MDM_PIXEL_RGB16;
            else image->format = sample == 1 ? MDM_PIXEL_GREY8 : MDM_PIXEL_GREY16;
            fine = 1;
        }
    }
    fclose(file);
    return fine;
}

/* Writes a PGM, under another name until it is whole. 1 if all went well. */
static int write_mask(const char *path, const unsigned char *labels, const mdm_result_size *size) {
    char *partial = malloc(strlen(path) + sizeof ".part");
    if (partial == NULL) return complain(path, "out of memory");
    strcat(strcpy(partial, path), ".part");
    FILE *file = fopen(partial, "wb");
    int fine = file != NULL;
    if (fine) {
        fprintf(file, "P5\n%u %u\n%u\n", size->width, size->height, size->classes > 1 ? size->classes - 1 : 1);
        fine = fwrite(labels, 1, size->labels, file) == size->labels;
        /* Not all is written before the file is closed. */
        fine = fclose(file) == 0 && fine;
#ifdef _WIN32
        remove(path);
#endif
        fine = fine && rename(partial, path) == 0;
    }
    if (!fine) {
        complain(path, strerror(errno));
        remove(partial);
    }
    free(partial);
    return fine;
}

static int32_t show_progress(void *unused, const mdm_progress *progress) {
    (void)unused;
    fprintf(stderr, "\r%llu of %llu windows", (unsigned long long)progress->windows_done,
            (unsigned long long)progress->windows);
    return 0;
}

int main(int count, char **arguments) {
    if (count < 4 || count > 5) {
        fprintf(stderr, "usage: segment MODEL IMAGE.ppm MASK.pgm [MICRONS_PER_PIXEL]\n");
        return 2;
    }
    mdm_error *error = NULL;
    mdm_model *model = NULL;
    mdm_device *device = NULL;
    mdm_segmenter *segmenter = NULL;
    unsigned char *pixels = NULL, *labels = NULL;
    mdm_image image = MDM_IMAGE_INIT;
    mdm_device_info chosen = MDM_DEVICE_INFO_INIT;
    mdm_result_size size = MDM_RESULT_SIZE_INIT;
    mdm_result result = MDM_RESULT_INIT;
    mdm_run run = MDM_RUN_INIT;
    mdm_report report = MDM_REPORT_INIT;
    int fine = 0;

    if (failed(mdm_check_abi(MDM_ABI_VERSION, &error), &error)) goto done;
    if (!read_image(arguments[2], &image, &pixels)) goto done;
    if (count == 5) {
        char *end = arguments[4];
        image.microns_per_pixel = strtod(arguments[4], &end);
        if (end == arguments[4] || *end != 0) {
            complain(arguments[4], "not a number of micrometres");
            goto done;
        }
    }
    if (failed(mdm_model_open(arguments[1], &model, &error), &error)) goto done;
    if (failed(mdm_device_open("auto", NULL, &device, &error), &error)) goto done;
    if (failed(mdm_device_get_info(device, &chosen, &error), &error)) goto done;
    if (failed(mdm_segmenter_new(model, device, NULL, &segmenter, &error), &error)) goto done;

    if (failed(mdm_segmenter_result_size(segmenter, image.width, image.height, MDM_LABEL_U8, &size, &error), &error)) goto done;
    labels = malloc(size.labels);
    if (labels == NULL) {
        complain(arguments[3], "out of memory");
        goto done;
    }
    result.labels = labels;
    result.labels_size = size.labels;
    run.progress = show_progress;
    mdm_status status = mdm_segmenter_run(segmenter, &image, &result, &run, &report, &error);
    fputc('\n', stderr);
    if (failed(status, &error) || !write_mask(arguments[3], labels, &size)) goto done;
    printf("%u x %u pixels, %u classes: %.2f s on %s\n", size.width, size.height, size.classes, report.seconds, chosen.name);
    fine = 1;

done:
    mdm_segmenter_free(segmenter);
    mdm_device_free(device);
    mdm_model_free(model);
    free(labels);
    free(pixels);
    return fine ? 0 : 1;
}
