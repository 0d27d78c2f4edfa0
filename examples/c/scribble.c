/*
 * Fits heads to scribbles on one image and segments it: scribble MODEL IMAGE.pgm SCRIBBLES.pgm MASK.pgm [FITTED.safetensors]
 *
 * Images are binary PGMs of 8 bits. A scribble's value is a class, 0 or 1, and 255 where nothing is drawn. Every second pixel
 * is held back at first, as if it were drawn later: heads are fitted to the others and then refined. Where libmdm_train is
 * installed:
 *
 *     cc scribble.c -o scribble $(pkg-config --cflags --libs mdm_train)
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mdm_train.h>

typedef struct {
    unsigned width, height;
    unsigned char *pixels;
} picture;

/* Says what went wrong, if anything did. */
static int failed(mdm_status status, mdm_error **error) {
    if (status == MDM_OK) return 0;
    fprintf(stderr, "scribble: %s\n", mdm_error_message(*error));
    mdm_error_free(*error);
    *error = NULL;
    return 1;
}

/* 1 if all went well; the pixels are to be freed. */
static int read_picture(const char *path, picture *picture) {
    FILE *file = fopen(path, "rb");
    unsigned highest = 0;
    int fine = file != NULL && fscanf(file, "P5 %u %u %u", &picture->width, &picture->height, &highest) == 3;
    fine = fine && highest == 255 && picture->width - 1 < 32768 && picture->height - 1 < 32768 && getc(file) != EOF;
    size_t size = fine ? (size_t)picture->width * picture->height : 0;
    fine = fine && (picture->pixels = malloc(size)) != NULL && fread(picture->pixels, 1, size, file) == size;
    if (!fine) fprintf(stderr, "scribble: %s: not a binary PGM of 8 bits\n", path);
    if (file != NULL) fclose(file);
    return fine;
}

static int write_picture(const char *path, const picture *picture) {
    FILE *file = fopen(path, "wb");
    size_t size = (size_t)picture->width * picture->height;
    int fine = file != NULL && fprintf(file, "P5\n%u %u\n255\n", picture->width, picture->height) > 0;
    fine = fine && fwrite(picture->pixels, 1, size, file) == size;
    if (file != NULL) fine = fclose(file) == 0 && fine;
    if (!fine) fprintf(stderr, "scribble: %s: cannot be written\n", path);
    return fine;
}

int main(int count, char **arguments) {
    if (count < 5 || count > 6) {
        fprintf(stderr, "usage: scribble MODEL IMAGE.pgm SCRIBBLES.pgm MASK.pgm [FITTED.safetensors]\n");
        return 2;
    }
    static const char *const names[2] = {"background", "object"};
    mdm_error *error = NULL;
    mdm_device *device = NULL;
    mdm_model *backbone = NULL, *fitted = NULL;
    mdm_fitter *fitter = NULL;
    mdm_segmenter *segmenter = NULL;
    picture image = {0, 0, NULL}, scribbles = {0, 0, NULL}, mask = {0, 0, NULL};
    mdm_fitter_options options = MDM_FITTER_OPTIONS_INIT;
    mdm_image view = MDM_IMAGE_INIT;
    mdm_labels labels = MDM_LABELS_INIT;
    mdm_label_report said = MDM_LABEL_REPORT_INIT;
    mdm_fit_report report = MDM_FIT_REPORT_INIT;
    mdm_result result = MDM_RESULT_INIT;
    unsigned char *strokes = NULL;
    int fine = 0;

    if (!read_picture(arguments[2], &image) || !read_picture(arguments[3], &scribbles)) goto done;
    if (scribbles.width != image.width || scribbles.height != image.height) {
        fprintf(stderr, "scribble: the scribbles are not as large as the image\n");
        goto done;
    }
    size_t pixels = (size_t)image.width * image.height;
    mask = image;
    mask.pixels = malloc(pixels);
    strokes = malloc(pixels);
    if (mask.pixels == NULL || strokes == NULL) goto done;

    if (failed(mdm_train_check_abi(MDM_TRAIN_ABI_VERSION, &error), &error)) goto done;
    if (failed(mdm_device_open(getenv("MDM_DEVICE"), NULL, &device, &error), &error)) goto done;
    if (failed(mdm_model_open(arguments[1], &backbone, &error), &error)) goto done;
    options.classes = 2;
    options.class_names = names;
    options.heads = 3;
    if (failed(mdm_fitter_new(backbone, device, NULL, &options, &fitter, &error), &error)) goto done;

    view.pixels = image.pixels;
    view.pixels_size = pixels;
    view.width = image.width;
    view.height = image.height;
    view.format = MDM_PIXEL_GREY8;
    if (failed(mdm_fitter_set_image(fitter, "image", &view, &error), &error)) goto done;

    size_t drawn = 0, shown = 0;
    for (size_t i = 0; i < pixels; i++) drawn += scribbles.pixels[i] != MDM_UNLABELLED;
    memset(strokes, MDM_UNLABELLED, pixels);
    labels.labels = strokes;
    labels.labels_size = pixels;
    labels.width = image.width;
    labels.height = image.height;
    for (int half = 0; half < 2; half++) {
        for (size_t i = 0, seen = 0; i < pixels; i++) {
            if (scribbles.pixels[i] == MDM_UNLABELLED) continue;
            if ((int)(seen++ % 2) == half) {
                strokes[i] = scribbles.pixels[i];
                shown++;
            }
        }
        if (failed(mdm_fitter_set_labels(fitter, "image", &labels, NULL, &said, &error), &error)) goto done;
        if (failed(mdm_fitter_refine(fitter, NULL, &report, &error), &error)) goto done;
        printf("%u of %u labelled pixels: %.2f s for the heads, accuracy %.3f\n", (unsigned)shown, (unsigned)drawn,
               report.seconds, report.accuracy);
    }

    if (failed(mdm_fitter_model(fitter, &fitted, &error), &error)) goto done;
    if (failed(mdm_segmenter_new(fitted, device, NULL, &segmenter, &error), &error)) goto done;
    result.labels = mask.pixels;
    result.labels_size = pixels;
    if (failed(mdm_segmenter_run(segmenter, &view, &result, NULL, NULL, &error), &error)) goto done;
    if (!write_picture(arguments[4], &mask)) goto done;
    if (count == 6 && failed(mdm_model_save(fitted, arguments[5], MDM_SAVE_BACKBONE | MDM_SAVE_HEADS, MDM_STORED_AS_IS, &error), &error)) goto done;
    fine = 1;

done:
    mdm_segmenter_free(segmenter);
    mdm_model_free(fitted);
    mdm_fitter_free(fitter);
    mdm_model_free(backbone);
    mdm_device_free(device);
    free(strokes);
    free(mask.pixels == image.pixels ? NULL : mask.pixels);
    free(scribbles.pixels);
    free(image.pixels);
    return fine ? 0 : 1;
}
