/* What the test programs of training share. */
#ifndef TRAIN_H
#define TRAIN_H

#include <mdm_train.h>

#include "../../../tests/c/check.h"

/* Valgrind is some fifty times slower: one window instead of four. */
#ifdef VALGRIND
enum { SIDE = 32, WATCHED = 1 };
#else
enum { SIDE = 48, WATCHED = 0 };
#endif
enum { PIXELS = SIDE * SIDE };

/* A bright square on a dark ground. */
static inline unsigned char is_bright(size_t at) {
    size_t y = at / SIDE, x = at % SIDE;
    return y >= 8 && y < 36 && x >= 12 && x < 40;
}

/* The image, and labels of every fourth row. */
static inline void draw_image(unsigned char *pixels, unsigned char *labels) {
    uint64_t state = 5;
    for (size_t at = 0; at < PIXELS; at++) {
        pixels[at] = (unsigned char)(40 + 150 * is_bright(at) + random32(&state) % 20);
        labels[at] = at / SIDE % 4 == 2 ? is_bright(at) : MDM_UNLABELLED;
    }
}

static inline mdm_labels labels_of(const unsigned char *labels) {
    mdm_labels said = MDM_LABELS_INIT;
    said.labels = labels;
    said.labels_size = PIXELS;
    said.width = SIDE;
    said.height = SIDE;
    return said;
}

/* Enough to tell light from dark. */
static inline mdm_fitter_options quick_options(void) {
    static const char *const names[2] = {"dark", "bright"};
    static const uint8_t colours[2][3] = {{0, 0, 0}, {250, 200, 30}};
    mdm_fitter_options options = MDM_FITTER_OPTIONS_INIT;
    options.class_names = names;
    options.class_colours = &colours[0][0];
    options.classes = 2;
    options.heads = 2;
    options.held_out = 1;
    options.epochs = 1;
    options.min_steps = 30;
    options.batch = 64;
    options.refine_steps = 10;
    options.refine_batch = 64;
    options.learning_rate = 0.01;
    return options;
}

static inline void segment(mdm_model *model, mdm_device *device, const unsigned char *pixels, unsigned char *labels) {
    mdm_segmenter *segmenter = NULL;
    OK(mdm_segmenter_new(model, device, NULL, &segmenter, &error));
    mdm_image image = grey_image(pixels, SIDE, SIDE);
    mdm_result result = labels_result(labels, PIXELS);
    OK(mdm_segmenter_run(segmenter, &image, &result, NULL, NULL, &error));
    mdm_segmenter_free(segmenter);
}

#endif
