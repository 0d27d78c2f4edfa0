/*
 * Pre-trains a small backbone on images without labels: pretrain RUN.checkpoint BACKBONE.safetensors STEPS IMAGE.pgm...
 *
 * Images are binary PGMs of 8 bits, 64 pixels wide and high or more; one that cannot be used is left out. They are read when the run
 * wants them. Ctrl-C saves the run into the checkpoint, and the same command goes on with it; a second Ctrl-C ends the program at once.
 * A checkpoint that is there knows how many steps its run has. Where libmdm_train is installed:
 *
 *     cc pretrain.c -o pretrain $(pkg-config --cflags --libs mdm_train)
 */
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mdm_train.h>

enum { BETWEEN_CHECKPOINTS = 5 };

static volatile sig_atomic_t interrupted = 0;

static void interrupt(int number) {
    interrupted = 1;
    signal(number, SIG_DFL);
}

/* Called on this thread after every step. */
static int32_t go_on(void *user_data, const mdm_progress *progress) {
    (void)user_data;
    (void)progress;
    return interrupted != 0;
}

/* Reads a file of `user_data`, the paths. Called on threads of the library, one at a time. */
static mdm_status read_image(void *user_data, uint64_t index, mdm_image *image) {
    char *const *paths = user_data;
    unsigned width = 0, height = 0, highest = 0;
    unsigned char *pixels = NULL;
    FILE *file = fopen(paths[index], "rb");
    if (file == NULL) return MDM_ERROR_IO;
    int fine = fscanf(file, "P5 %u %u %u", &width, &height, &highest) == 3 && highest == 255 && getc(file) != EOF;
    fine = fine && width - 1 < 32768 && height - 1 < 32768;
    size_t size = fine ? (size_t)width * height : 0;
    fine = fine && (pixels = malloc(size)) != NULL && fread(pixels, 1, size, file) == size;
    fclose(file);
    if (!fine) {
        free(pixels);
        return MDM_ERROR_IMAGE;
    }
    image->pixels = pixels;
    image->pixels_size = size;
    image->width = width;
    image->height = height;
    image->format = MDM_PIXEL_GREY8;
    return MDM_OK;
}

static void release_image(void *user_data, uint64_t index, const mdm_image *image) {
    (void)user_data;
    (void)index;
    free((void *)image->pixels);
}

/* Says what went wrong, if anything did. */
static int failed(mdm_status status, mdm_error **error) {
    if (status == MDM_OK) return 0;
    fprintf(stderr, "pretrain: %s\n", mdm_error_message(*error));
    mdm_error_free(*error);
    *error = NULL;
    return 1;
}

/* 1 if it is there, 0 if not, -1 where that cannot be told. */
static int exists(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file != NULL) {
        fclose(file);
        return 1;
    }
    if (errno == ENOENT) return 0;
    fprintf(stderr, "pretrain: %s: %s\n", path, strerror(errno));
    return -1;
}

/* Trains until the last step or Ctrl-C: 1 at the last step, 0 if it was stopped, -1 where it failed. */
static int train(mdm_trainer *trainer, const char *checkpoint) {
    mdm_error *error = NULL;
    mdm_run run = MDM_RUN_INIT;
    mdm_step_report report = MDM_STEP_REPORT_INIT;
    mdm_trainer_info info = MDM_TRAINER_INFO_INIT;
    run.progress = go_on;
    do {
        mdm_status status = mdm_trainer_run(trainer, BETWEEN_CHECKPOINTS, &run, &report, &error);
        if (status == MDM_ERROR_CANCELLED) {
            mdm_error_free(error);
            error = NULL;
        } else if (failed(status, &error)) {
            return -1;
        }
        /* Steps that were finished stay, whatever stopped it. */
        if (failed(mdm_trainer_save(trainer, checkpoint, &error), &error)) return -1;
        if (failed(mdm_trainer_get_info(trainer, &info, &error), &error)) return -1;
        printf("step %lu of %lu: loss %.4f\n", (unsigned long)info.step, (unsigned long)info.steps, info.loss);
        if (fflush(stdout) != 0) {
            fprintf(stderr, "pretrain: standard output: %s\n", strerror(errno));
            return -1;
        }
    } while (info.step < info.steps && !interrupted);
    for (uint64_t i = 0; i < info.left_out; i++) fprintf(stderr, "pretrain: left out: %s\n", mdm_trainer_left_out(trainer, i));
    return info.step == info.steps;
}

int main(int count, char **arguments) {
    char *end = NULL;
    errno = 0;
    unsigned long steps = count < 5 ? 0 : strtoul(arguments[3], &end, 10);
    if (steps == 0 || *end != 0 || errno != 0 || arguments[3][0] == '-') {
        fprintf(stderr, "usage: pretrain RUN.checkpoint BACKBONE.safetensors STEPS IMAGE.pgm...\n");
        return 2;
    }
    mdm_error *error = NULL;
    mdm_device *device = NULL;
    mdm_trainer *trainer = NULL;
    mdm_model *backbone = NULL;
    mdm_training_images images = MDM_TRAINING_IMAGES_INIT;
    mdm_trainer_options recipe = MDM_TRAINER_OPTIONS_INIT;
    int fine = 0, last = 0;

    images.read = read_image;
    images.release = release_image;
    images.user_data = arguments + 4;
    images.count = (uint64_t)count - 4;
    recipe.steps = steps;
    recipe.width = 32;
    recipe.size = 64;
    recipe.batch = 4;
    recipe.average = 0.99;

    if (signal(SIGINT, interrupt) == SIG_ERR) {
        fprintf(stderr, "pretrain: cannot watch for Ctrl-C: %s\n", strerror(errno));
        goto done;
    }
    if (failed(mdm_check_abi(MDM_ABI_VERSION, &error), &error)) goto done;
    if (failed(mdm_train_check_abi(MDM_TRAIN_ABI_VERSION, &error), &error)) goto done;
    if (failed(mdm_device_open(getenv("MDM_DEVICE"), NULL, &device, &error), &error)) goto done;
    int there = exists(arguments[1]);
    if (there < 0) goto done;
    mdm_status status = there ? mdm_trainer_resume(device, arguments[1], &images, &trainer, &error)
                              : mdm_trainer_new(device, &recipe, NULL, &images, &trainer, &error);
    if (failed(status, &error)) goto done;
    last = train(trainer, arguments[1]);
    if (last < 0) goto done;
    if (last == 0) {
        printf("stopped; the same command goes on\n");
    } else {
        if (failed(mdm_trainer_model(trainer, "pretrain.c", &backbone, &error), &error)) goto done;
        if (failed(mdm_model_save(backbone, arguments[2], MDM_SAVE_BACKBONE, MDM_STORED_F16, &error), &error)) goto done;
    }
    fine = 1;

done:
    mdm_model_free(backbone);
    mdm_trainer_free(trainer);
    mdm_device_free(device);
    return fine ? 0 : 1;
}
