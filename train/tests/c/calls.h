/* Calls of training with random arguments, each of which ends with a status, between those of inference. */
#ifndef TRAINING_CALLS_H
#define TRAINING_CALLS_H

#include <mdm_train.h>

#include "../../../tests/c/calls.h"

static const char *const image_names[] = {"a", "b", "\xc3\xa8", "\xff"};
static unsigned char drawn[LARGEST * LARGEST];
static const char *checkpoint_path, *saved_path;

/* The last that was made of each kind. */
static struct {
    mdm_device *device;
    mdm_model *model;
    mdm_fitter *fitter;
    mdm_trainer *trainer;
} last;

/* Mostly what it should be, so that calls get somewhere. */
static void *mostly(void *fine) { return below(4) ? fine : handle(); }

/* Mostly fine, sometimes any number. */
static double mostly_real(double fine) { return below(16) ? fine : real(); }

/* Frees training objects too, whatever they are. */
static void free_any_training(void *any) {
    mdm_fitter_free(any);
    mdm_trainer_free(any);
    free_any(any);
}

static int32_t watch_training(void *user_data, const mdm_progress *now) {
    (void)user_data;
    CHECK(now->struct_size >= sizeof(mdm_progress) && now->fraction >= 0 && now->fraction <= 1);
    if (below(60) == 0) free_any_training(handle());
    if (below(20) == 0) {
        mdm_fitter_info info = MDM_FITTER_INFO_INIT;
        mdm_fitter_get_info(handle(), &info, NULL);
    }
    return below(30) == 0;
}

static mdm_run random_training_run(void) {
    mdm_run run = MDM_RUN_INIT;
    run.struct_size = below(8) ? sizeof run : size_of(sizeof run);
    run.progress = below(2) ? watch_training : NULL;
    run.cancel = below(6) ? NULL : handle();
    return run;
}

/* On threads of the library, where nothing is drawn: the index says what becomes of an image. */
static mdm_status read_training_image(void *user_data, uint64_t index, mdm_image *image) {
    (void)user_data;
    image->pixels = index % 5 == 1 ? NULL : image_bytes;
    image->pixels_size = index % 5 == 2 ? 7 : 40 * 36;
    image->width = 40;
    image->height = index % 5 == 3 ? 0 : 36;
    image->format = MDM_PIXEL_GREY8;
    return index % 5 == 4 ? 12345 : MDM_OK;
}

static void release_training_image(void *user_data, uint64_t index, const mdm_image *image) {
    (void)user_data;
    CHECK(image->width == 40 && index % 5 != 4);
}

static mdm_training_images random_training_images(void) {
    static const char *const nowhere[] = {"nowhere/at/all", NULL};
    mdm_training_images images = MDM_TRAINING_IMAGES_INIT;
    images.struct_size = below(8) ? sizeof images : size_of(sizeof images);
    images.read = below(20) ? read_training_image : NULL;
    images.release = below(2) ? release_training_image : NULL;
    images.paths = below(20) ? NULL : nowhere;
    images.count = images.paths ? below(3) : below(16) ? 1 + below(6) : number(7);
    images.concurrent = below(16) ? below(2) : draw(4);
    images.microns_per_pixel = mostly_real(0);
    return images;
}

/* Mostly small enough to train in a moment: whoever asks for a large network gets one. */
static mdm_trainer_options random_recipe(void) {
    static const uint32_t sizes[] = {64, 33, 1};
    mdm_trainer_options options = MDM_TRAINER_OPTIONS_INIT;
    options.struct_size = below(16) ? sizeof options : size_of(sizeof options);
    options.seed = draw(4);
    options.steps = 1 + below(4);
    options.warmup = below(3);
    options.learning_rate = mostly_real(0.001);
    options.weight_decay = mostly_real(0);
    options.clip = mostly_real(below(2));
    options.average = mostly_real(0.9);
    options.microns_per_pixel = mostly_real(0);
    options.skip_background = mostly_real(0);
    options.width = below(16) ? 32 : 33;
    options.size = below(10) ? 32 : sizes[below(3)];
    options.batch = 1 + below(2);
    options.microbatch = below(8) ? below(2) : below(4);
    options.corruption = below(16) ? below(3) : draw(4);
    options.patch = below(8) ? 0 : number(20);
    options.fixed_timestep = below(4) ? 0 : number(1001);
    options.loss = below(16) ? below(4) : draw(4);
    options.schedule = below(16) ? below(3) : draw(4);
    options.upright = below(16) ? below(2) : draw(4);
    options.recompute = below(16) ? below(2) : draw(4);
    return options;
}

static mdm_fitter_options random_fitter_options(void) {
    static const char *const names[] = {"dark", "bright", "\xff", NULL};
    mdm_fitter_options options = MDM_FITTER_OPTIONS_INIT;
    options.struct_size = below(8) ? sizeof options : size_of(sizeof options);
    options.classes = below(10) ? 2 + below(2) : number(4);
    options.class_names = below(4) || options.classes > 4 ? NULL : names;
    options.class_colours = below(2) || options.classes > 255 ? NULL : image_bytes;
    options.seed = draw(4);
    options.max_samples = below(8) ? below(2) * 50 : number(100);
    options.feature_memory = below(2) ? 0 : number(100000);
    options.fraction = mostly_real(0);
    options.learning_rate = mostly_real(0.01);
    options.refine_learning_rate = mostly_real(0.01);
    options.heads = below(16) ? 1 + below(2) : 1001 + below(9);
    options.balance = below(16) ? below(2) : draw(4);
    options.held_out = below(16) ? below(2) : draw(4);
    options.epochs = 1;
    options.min_steps = 1 + below(10);
    options.batch = below(16) ? 2 + below(60) : 1;
    options.refine_steps = 1 + below(5);
    options.refine_batch = below(16) ? 2 + below(60) : 1;
    return options;
}

/* Mostly a step of small crops. */
static mdm_tune_options random_tune_options(void) {
    static const uint32_t sizes[] = {64, 33, 8196};
    mdm_tune_options options = MDM_TUNE_OPTIONS_INIT;
    options.struct_size = below(8) ? sizeof options : size_of(sizeof options);
    options.seed = draw(4);
    options.steps = 1 + below(2);
    options.seconds = below(16) ? 0 : below(2) ? 0.01 : -1;
    if (options.seconds > 0 && below(4)) options.steps = 0;
    options.learning_rate = mostly_real(0.001);
    options.scale = mostly_real(below(2) ? 0 : -1);
    options.intensity = mostly_real(below(2) ? 0 : -1);
    options.noise = mostly_real(below(2) ? 0 : 0.1);
    options.batch = below(16) ? 1 + below(2) : 65537;
    options.size = below(10) ? 32 : sizes[below(3)];
    options.loss = below(16) ? below(4) : draw(4);
    options.balance = below(16) ? below(2) : draw(4);
    options.held_out = below(16) ? below(2) : draw(4);
    options.quarter_turns = below(16) ? below(2) : draw(4);
    options.unmirrored = below(16) ? below(2) : draw(4);
    return options;
}

static mdm_labels random_labels(void) {
    static uint16_t wide[LARGEST * LARGEST];
    mdm_labels said = MDM_LABELS_INIT;
    uint32_t most = below(8) ? 2 : 1 + below(5), every = 1 + below(40);
    for (size_t i = 0; i < sizeof drawn; i++) {
        drawn[i] = i % every ? MDM_UNLABELLED : (unsigned char)below(most);
        wide[i] = drawn[i];
    }
    said.struct_size = below(8) ? sizeof said : size_of(sizeof said);
    said.label_type = below(16) ? below(2) : draw(4);
    said.labels = below(20) == 0 ? NULL : said.label_type == MDM_LABEL_U16 ? (void *)wide : drawn;
    said.labels_size = sizeof drawn * (said.label_type == MDM_LABEL_U16 ? 2 : 1);
    if (below(10) == 0) said.labels_size = below(sizeof drawn);
    said.row_stride = below(8) ? 0 : number(100);
    said.width = below(16) ? 40 : number(LARGEST);
    said.height = below(16) ? 30 : number(LARGEST);
    return said;
}

/* Makes a device and a model where there are none any more. */
static void revive(const char *path) {
    mdm_device_info device = MDM_DEVICE_INFO_INIT;
    mdm_model_info model = MDM_MODEL_INFO_INIT;
    mdm_device_options options = MDM_DEVICE_OPTIONS_INIT;
    options.threads = 1;
    if (mdm_device_get_info(last.device, &device, NULL) != MDM_OK) {
        OK(mdm_device_open("cpu", &options, &last.device, &error));
        keep(last.device);
    }
    if (mdm_model_get_info(last.model, &model, NULL) != MDM_OK) {
        OK(mdm_model_open(path, &last.model, &error));
        keep(last.model);
    }
}

/* Objects to begin with, and where files go: a folder that can be written. */
static void begin_training(const char *model_path, const char *folder) {
    static char checkpoint[1024], saved[1024];
    snprintf(checkpoint, sizeof checkpoint, "%s/random.checkpoint", folder);
    snprintf(saved, sizeof saved, "%s/random.safetensors", folder);
    checkpoint_path = checkpoint;
    saved_path = saved;
    memset(&last, 0, sizeof last);
    begin(model_path);
}

static void call_training(const char *path) {
    mdm_error *error = NULL;
    mdm_error **where = below(3) ? &error : NULL;
    void *made = NULL;
    mdm_status status = MDM_OK;
    const char *name = below(20) ? image_names[below(10) ? below(2) : below(4)] : NULL;
    revive(path);
    switch (below(17)) {
        case 0: case 1: {
            mdm_fitter_options options = random_fitter_options();
            mdm_feature_options features = MDM_FEATURE_OPTIONS_INIT;
            uint32_t block = number(3);
            features.blocks = &block;
            features.block_count = below(2);
            mdm_fitter *fitter = NULL;
            status = mdm_fitter_new(mostly(last.model), mostly(last.device), below(3) ? NULL : &features, below(20) ? &options : NULL, &fitter, where);
            made = fitter;
            if (fitter != NULL) last.fitter = fitter;
            break;
        }
        case 2: case 3: {
            mdm_image image = random_image();
            if (below(4)) {
                image.pixels = image_bytes;
                image.pixels_size = sizeof image_bytes;
                image.width = 40;
                image.height = 30;
                image.format = MDM_PIXEL_GREY8;
                image.layout = MDM_LAYOUT_INTERLEAVED;
                image.row_stride = image.plane_stride = 0;
                image.microns_per_pixel = 0;
            }
            status = mdm_fitter_set_image(mostly(last.fitter), name, &image, where);
            break;
        }
        case 4: case 5: {
            mdm_labels said = random_labels();
            mdm_run run = random_training_run();
            mdm_label_report report = MDM_LABEL_REPORT_INIT;
            report.struct_size = below(8) ? sizeof report : size_of(sizeof report);
            status = mdm_fitter_set_labels(mostly(last.fitter), name, &said, below(3) ? &run : NULL, below(4) ? &report : NULL, where);
            break;
        }
        case 6: case 7: {
            mdm_run run = random_training_run();
            mdm_fit_report report = MDM_FIT_REPORT_INIT;
            report.struct_size = below(8) ? sizeof report : size_of(sizeof report);
            mdm_status (*fit)(mdm_fitter *, const mdm_run *, mdm_fit_report *, mdm_error **) =
                below(2) ? mdm_fitter_fit : mdm_fitter_refine;
            status = fit(mostly(last.fitter), below(3) ? &run : NULL, below(4) ? &report : NULL, where);
            break;
        }
        case 8: if (below(3) == 0) status = mdm_fitter_remove(mostly(last.fitter), name, where); break;
        case 9: {
            mdm_fitter_options options = random_fitter_options();
            status = mdm_fitter_set_classes(mostly(last.fitter), options.class_names, options.class_colours, options.classes, where);
            break;
        }
        case 10: {
            mdm_model *model = NULL;
            if (below(2)) status = mdm_fitter_model(mostly(last.fitter), &model, where);
            else status = mdm_trainer_model(mostly(last.trainer), below(3) ? name : NULL, &model, where);
            made = model;
            break;
        }
        case 11: {
            mdm_trainer_options recipe = random_recipe();
            mdm_training_images images = random_training_images();
            mdm_trainer *trainer = NULL;
            /* Without a recipe the network is the paper's, which is too large to try. */
            if (below(3)) status = mdm_trainer_new(mostly(last.device), &recipe, below(4) ? NULL : mostly(last.model), &images, &trainer, where);
            else status = mdm_trainer_resume(mostly(last.device), below(3) ? checkpoint_path : path, &images, &trainer, where);
            made = trainer;
            if (trainer != NULL) last.trainer = trainer;
            break;
        }
        case 12: {
            mdm_run run = random_training_run();
            mdm_step_report report = MDM_STEP_REPORT_INIT;
            report.struct_size = below(8) ? sizeof report : size_of(sizeof report);
            status = mdm_trainer_run(mostly(last.trainer), below(3), below(3) ? &run : NULL, below(4) ? &report : NULL, where);
            break;
        }
        case 13: {
            if (below(2)) status = mdm_trainer_save(mostly(last.trainer), below(5) ? checkpoint_path : below(2) ? "nowhere/at/all" : NULL, where);
            else status = mdm_model_save(mostly(last.model), below(5) ? saved_path : below(2) ? "nowhere/at/all" : NULL, number(4), number(4), where);
            break;
        }
        case 14: if (below(3) == 0) free_any_training(handle()); break;
        case 15: {
            mdm_tune_options options = random_tune_options();
            mdm_run run = random_training_run();
            mdm_tune_report report = MDM_TUNE_REPORT_INIT;
            report.struct_size = below(8) ? sizeof report : size_of(sizeof report);
            mdm_model *model = NULL;
            /* Without a number of steps there are too many to wait for. */
            if (options.struct_size < offsetof(mdm_tune_options, learning_rate)) break;
            status = mdm_fitter_tune(mostly(last.fitter), &options, below(3) ? &run : NULL, below(4) ? &report : NULL, below(20) ? &model : NULL, where);
            made = model;
            break;
        }
        default: {
            mdm_fitter_info fitter = MDM_FITTER_INFO_INIT;
            mdm_trainer_info trainer = MDM_TRAINER_INFO_INIT;
            uint64_t pixels = 0;
            fitter.struct_size = size_of(sizeof fitter);
            trainer.struct_size = size_of(sizeof trainer);
            mdm_fitter_get_info(mostly(last.fitter), &fitter, NULL);
            mdm_trainer_get_info(mostly(last.trainer), &trainer, NULL);
            mdm_trainer_left_out(mostly(last.trainer), number(3));
            mdm_train_check_abi(number(3), NULL);
            status = mdm_fitter_class_pixels(mostly(last.fitter), number(3), below(10) ? &pixels : NULL, where);
            break;
        }
    }
    CHECK((status >= MDM_OK && status < MDM_ERROR_INTERNAL) || status == MDM_TRAIN_ERROR_DIVERGED);
    CHECK(where == NULL || (status == MDM_OK) == (error == NULL));
    CHECK(status == MDM_OK || made == NULL);
    if (error != NULL) CHECK(mdm_error_message(error)[0] != 0 && mdm_error_status(error) == status);
    keep(made);
    mdm_error_free(error);
}

/* Frees all that calls left; nothing may remain. */
static void finish_training(void) {
    for (size_t i = 0; i < made_count; i++) {
        mdm_fitter_free(made_ever[i]);
        mdm_trainer_free(made_ever[i]);
    }
    finish();
}

#endif
