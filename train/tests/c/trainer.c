/* Every function of pre-training, and every error that a caller can cause. Usage: trainer FOLDER */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <time.h>

#include "train.h"

static mdm_device *device;
static unsigned char pixels[PIXELS], labels[PIXELS];

typedef struct {
    pthread_mutex_t lock;
    int inside, most_inside, read, released;
} reader;

static mdm_status read_image(void *user_data, uint64_t index, mdm_image *image) {
    reader *state = user_data;
    CHECK(image->struct_size == sizeof(mdm_image) && image->pixels == NULL && index < 4);
    CHECK(pthread_mutex_lock(&state->lock) == 0);
    if (++state->inside > state->most_inside) state->most_inside = state->inside;
    state->read++;
    CHECK(pthread_mutex_unlock(&state->lock) == 0);
    if (index == 2) {
        CHECK(pthread_mutex_lock(&state->lock) == 0);
        state->inside--;
        state->released++;
        CHECK(pthread_mutex_unlock(&state->lock) == 0);
        return MDM_ERROR_IO;
    }
    *image = grey_image(pixels, SIDE, SIDE);
    return MDM_OK;
}

static void release_image(void *user_data, uint64_t index, const mdm_image *image) {
    reader *state = user_data;
    CHECK(image->pixels == pixels && index != 2);
    CHECK(pthread_mutex_lock(&state->lock) == 0);
    state->inside--;
    state->released++;
    CHECK(pthread_mutex_unlock(&state->lock) == 0);
}

static mdm_training_images images_of(reader *state) {
    mdm_training_images images = MDM_TRAINING_IMAGES_INIT;
    images.read = read_image;
    images.release = release_image;
    images.user_data = state;
    images.count = 4;
    return images;
}

static mdm_trainer_options small_recipe(void) {
    mdm_trainer_options options = MDM_TRAINER_OPTIONS_INIT;
    options.width = 32;
    options.size = 32;
    options.batch = 2;
    options.steps = 4;
    options.seed = 5;
    return options;
}

static void wrong_options(void) {
    reader state = {PTHREAD_MUTEX_INITIALIZER, 0, 0, 0, 0};
    mdm_trainer *trainer = NULL;
    mdm_trainer_options options = small_recipe(), same;
    mdm_training_images images = images_of(&state), as_made;
    memset(&same, 7, sizeof same);
    mdm_trainer_options_init(&same, sizeof same);
    CHECK(same.struct_size == sizeof same && same.steps == 0);
    mdm_training_images_init(&as_made, sizeof as_made);
    CHECK(as_made.struct_size == sizeof as_made && as_made.paths == NULL);
#define WRONG(member, value, words)                                                                        \
    do {                                                                                                   \
        options = small_recipe();                                                                          \
        options.member = (value);                                                                          \
        FAILS(MDM_ERROR_INVALID_ARGUMENT, words, mdm_trainer_new(device, &options, NULL, &images, &trainer, &error)); \
        CHECK(trainer == NULL);                                                                            \
    } while (0)
    WRONG(size, 33, "size");
    WRONG(microbatch, 3, "microbatch");
    WRONG(learning_rate, -1.0, "learning rate");
    WRONG(weight_decay, -1.0, "weight decay");
    WRONG(average, 1.0, "averages");
    WRONG(clip, -1.0, "clip");
    WRONG(corruption, 3, "corruption");
    WRONG(loss, 4, "loss");
    WRONG(schedule, 3, "schedule");
    WRONG(upright, 2, "upright");
    WRONG(recompute, 2, "recompute");
    WRONG(fixed_timestep, 5000, "timestep");
    WRONG(microns_per_pixel, -2.0, "microns");
    WRONG(skip_background, 2.0, "background");
    WRONG(reserved, 1, "reserved");
    options = small_recipe();
#define BAD(member, value, words)                                                                          \
    do {                                                                                                   \
        images = images_of(&state);                                                                        \
        images.member = (value);                                                                           \
        FAILS(MDM_ERROR_INVALID_ARGUMENT, words, mdm_trainer_new(device, &options, NULL, &images, &trainer, &error)); \
    } while (0)
    static const char *const nowhere[1] = {"nowhere/at/all"};
    BAD(read, NULL, "paths or read");
    BAD(paths, nowhere, "paths or read");
    BAD(count, 0, "count");
    BAD(concurrent, 2, "concurrent");
    BAD(reserved, 1, "reserved");
    BAD(microns_per_pixel, -1.0, "microns");
    images = images_of(NULL);
    images.read = NULL;
    images.paths = nowhere;
    images.count = 1;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "nowhere", mdm_trainer_new(device, &options, NULL, &images, &trainer, &error));
    images = images_of(&state);
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "NULL", mdm_trainer_new(device, &options, NULL, NULL, &trainer, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "trainer is NULL", mdm_trainer_new(device, &options, NULL, &images, NULL, &error));
    FAILS(MDM_ERROR_INVALID_HANDLE, "device", mdm_trainer_new(NULL, &options, NULL, &images, &trainer, &error));
    FAILS(MDM_ERROR_IO, "none", mdm_trainer_resume(device, "none", &images, &trainer, &error));
    FAILS(MDM_ERROR_INVALID_HANDLE, "trainer", mdm_trainer_run(NULL, 0, NULL, NULL, &error));
    FAILS(MDM_ERROR_INVALID_HANDLE, "trainer", mdm_trainer_save(NULL, "x", &error));
    CHECK(mdm_trainer_left_out(NULL, 0) == NULL);
    CHECK(state.inside == 0);
}

static int32_t count(void *user_data, const mdm_progress *progress) {
    int *calls = user_data;
    CHECK(progress->fraction >= 0 && progress->fraction <= 1);
    ++*calls;
    return 0;
}

/* Four steps at once, and two and two with a checkpoint between them, are the same. */
static void a_run_goes_on(const char *folder) {
    reader state = {PTHREAD_MUTEX_INITIALIZER, 0, 0, 0, 0};
    mdm_training_images images = images_of(&state);
    mdm_trainer_options options = small_recipe();
    mdm_trainer *trainer = NULL;
    mdm_trainer_info info = MDM_TRAINER_INFO_INIT;
    mdm_step_report whole = MDM_STEP_REPORT_INIT, parts = MDM_STEP_REPORT_INIT;
    mdm_run run = MDM_RUN_INIT;
    int calls = 0;
    run.progress = count;
    run.user_data = &calls;
    const char *checkpoint = in_folder(folder, "run.checkpoint"), *file = in_folder(folder, "trained.safetensors");
    OK(mdm_trainer_new(device, &options, NULL, &images, &trainer, &error));
    OK(mdm_trainer_run(trainer, 2, &run, &parts, &error));
    CHECK(parts.step == 2 && parts.applied == 1 && parts.loss > 0 && parts.seconds > 0 && calls > 0);
    OK(mdm_trainer_save(trainer, checkpoint, &error));
    FAILS(MDM_ERROR_IO, "nowhere", mdm_trainer_save(trainer, in_folder(folder, "nowhere/c"), &error));
    OK(mdm_trainer_run(trainer, 0, NULL, &whole, &error));
    CHECK(whole.step == 4);
    OK(mdm_trainer_get_info(trainer, &info, &error));
    CHECK(info.step == 4 && info.steps == 4 && info.images == 4 && info.size == 32 && info.batch == 2 && info.loss > 0);
    for (uint64_t i = 0; i < info.left_out; i++) CHECK(strstr(mdm_trainer_left_out(trainer, i), "image 2") != NULL);
    CHECK(mdm_trainer_left_out(trainer, info.left_out) == NULL);
    /* All steps are done. */
    OK(mdm_trainer_run(trainer, 0, NULL, &parts, &error));
    CHECK(parts.step == 4 && parts.applied == 0);
    mdm_trainer_free(trainer);
    CHECK(state.inside == 0 && state.most_inside == 1 && state.read == state.released);

    OK(mdm_trainer_resume(device, checkpoint, &images, &trainer, &error));
    OK(mdm_trainer_run(trainer, 10, NULL, &parts, &error));
    CHECK(parts.step == 4 && parts.loss == whole.loss && parts.gradient_norm == whole.gradient_norm);

    mdm_model *model = NULL;
    mdm_model_info about = MDM_MODEL_INFO_INIT;
    OK(mdm_trainer_model(trainer, "a test", &model, &error));
    OK(mdm_model_get_info(model, &about, &error));
    CHECK(strcmp(about.description, "a test") == 0 && about.has_backbone == 1 && about.heads == 0);
    OK(mdm_model_save(model, file, MDM_SAVE_BACKBONE, MDM_STORED_F16, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "heads", mdm_model_save(model, file, MDM_SAVE_HEADS, 0, &error));
    mdm_trainer_free(trainer);
    trainer = NULL;

    /* What was trained is trained further, on several threads at once. */
    images.concurrent = 1;
    OK(mdm_trainer_new(device, &options, model, &images, &trainer, &error));
    OK(mdm_trainer_run(trainer, 1, NULL, NULL, &error));
    mdm_trainer_free(trainer);
    mdm_trainer_free(trainer);
    mdm_trainer_free(NULL);
    mdm_model_free(model);
    OK(mdm_model_open(file, &model, &error));
    mdm_model_free(model);
}

typedef struct {
    mdm_trainer *trainer;
    mdm_cancel *cancel;
    mdm_status status;
} job;

static void *run_job(void *data) {
    job *work = data;
    mdm_run run = MDM_RUN_INIT;
    run.cancel = work->cancel;
    work->status = mdm_trainer_run(work->trainer, 0, &run, NULL, NULL);
    return NULL;
}

/* A run is cancelled, or its trainer freed, by another thread. */
static void stopped(void) {
    uint64_t random = 3;
    for (int round = 0; round < 4; round++) {
        reader state = {PTHREAD_MUTEX_INITIALIZER, 0, 0, 0, 0};
        mdm_training_images images = images_of(&state);
        mdm_trainer_options options = small_recipe();
        options.steps = 100000;
        job work = {NULL, NULL, MDM_OK};
        pthread_t thread;
        OK(mdm_trainer_new(device, &options, NULL, &images, &work.trainer, &error));
        OK(mdm_cancel_new(&work.cancel, &error));
        CHECK(pthread_create(&thread, NULL, run_job, &work) == 0);
        struct timespec time = {0, (long)(random32(&random) % 200000) * 1000};
        nanosleep(&time, NULL);
        mdm_trainer *trainer = work.trainer;
        if (round % 2) mdm_trainer_free(trainer);
        else OK(mdm_cancel_raise(work.cancel, &error));
        CHECK(pthread_join(thread, NULL) == 0);
        CHECK(work.status == MDM_ERROR_CANCELLED || (round % 2 && work.status == MDM_ERROR_INVALID_HANDLE));
        if (round % 2 == 0) OK(mdm_trainer_run(trainer, 1, NULL, NULL, &error));
        mdm_trainer_free(trainer);
        mdm_cancel_free(work.cancel);
        CHECK(state.inside == 0);
    }
}

/* Weight decay that makes parameters overflow: the error has a code of its own. */
static void diverged(void) {
    reader state = {PTHREAD_MUTEX_INITIALIZER, 0, 0, 0, 0};
    mdm_training_images images = images_of(&state);
    mdm_trainer_options options = small_recipe();
    mdm_trainer *trainer = NULL;
    options.steps = 40;
    options.learning_rate = 1;
    options.weight_decay = 1000;
    OK(mdm_trainer_new(device, &options, NULL, &images, &trainer, &error));
    FAILS(MDM_TRAIN_ERROR_DIVERGED, "diverged at step", mdm_trainer_run(trainer, 0, NULL, NULL, &error));
    CHECK(strcmp(mdm_status_name(MDM_TRAIN_ERROR_DIVERGED), "unknown") == 0);
    mdm_trainer_free(trainer);
}

/* What Valgrind has the time to watch. */
static void one_step(const char *folder) {
    reader state = {PTHREAD_MUTEX_INITIALIZER, 0, 0, 0, 0};
    mdm_training_images images = images_of(&state);
    mdm_trainer_options options = small_recipe();
    mdm_trainer *trainer = NULL;
    mdm_step_report report = MDM_STEP_REPORT_INIT;
    options.batch = 1;
    OK(mdm_trainer_new(device, &options, NULL, &images, &trainer, &error));
    OK(mdm_trainer_run(trainer, 1, NULL, &report, &error));
    CHECK(report.step == 1 && report.applied == 1 && report.loss > 0);
    OK(mdm_trainer_save(trainer, in_folder(folder, "step.checkpoint"), &error));
    mdm_trainer_free(trainer);
    CHECK(state.inside == 0 && state.read == state.released);
}

int main(int count, char **arguments) {
    CHECK(count == 2);
    draw_image(pixels, labels);
    mdm_device_options options = MDM_DEVICE_OPTIONS_INIT;
    options.threads = 2;
    OK(mdm_device_open("cpu", &options, &device, &error));
    wrong_options();
    one_step(arguments[1]);
    if (!WATCHED) {
        a_run_goes_on(arguments[1]);
        diverged();
        stopped();
    }
    mdm_device_free(device);
    CHECK(mdm_object_count() == 0);
    return 0;
}
