/* Networks that are tuned on a fitter's labels, and every error that a caller can cause. Usage: tuning FOLDER */
#include "train.h"

static mdm_device *device;
static mdm_model *backbone;
static unsigned char pixels[PIXELS], labels[PIXELS];

/* A few steps of small crops. */
static mdm_tune_options quick_tuning(void) {
    mdm_tune_options options = MDM_TUNE_OPTIONS_INIT;
    options.steps = 2;
    options.batch = WATCHED ? 1 : 2;
    return options;
}

static mdm_fitter *fitter_with(size_t images) {
    static const char *const names[] = {"a", "b", "c", "d"};
    mdm_fitter *fitter = NULL;
    mdm_fitter_options options = quick_options();
    OK(mdm_fitter_new(backbone, device, NULL, &options, &fitter, &error));
    mdm_image image = grey_image(pixels, SIDE, SIDE);
    mdm_labels said = labels_of(labels);
    for (size_t i = 0; i < images; i++) {
        OK(mdm_fitter_set_image(fitter, names[i], &image, &error));
        OK(mdm_fitter_set_labels(fitter, names[i], &said, NULL, NULL, &error));
    }
    return fitter;
}

static void wrong_options(void) {
    mdm_tune_options options, same;
    memset(&same, 7, sizeof same);
    mdm_tune_options_init(&same, sizeof same);
    CHECK(same.struct_size == sizeof same && same.steps == 0 && same.seconds == 0 && same.reserved == 0);
    mdm_fitter *fitter = fitter_with(1);
    mdm_model *model = NULL;
#define WRONG(member, value, words)                                                                              \
    do {                                                                                                         \
        options = quick_tuning();                                                                                \
        options.member = (value);                                                                                \
        FAILS(MDM_ERROR_INVALID_ARGUMENT, words, mdm_fitter_tune(fitter, &options, NULL, NULL, &model, &error)); \
        CHECK(model == NULL);                                                                                    \
    } while (0)
    double no_number = strtod("nan", NULL);
    WRONG(struct_size, 3, "struct_size");
    WRONG(reserved, 1, "reserved");
    WRONG(loss, 4, "MDM_TUNE_LOSS");
    WRONG(balance, 2, "balance");
    WRONG(held_out, 2, "held_out");
    WRONG(quarter_turns, 2, "quarter_turns");
    WRONG(unmirrored, 2, "unmirrored");
    WRONG(seconds, 1, "one of them has to be 0");
    WRONG(size, 33, "multiple of 4");
    WRONG(size, 0xfffffffc, "8192");
    WRONG(batch, 0xffffffff, "batch");
    WRONG(learning_rate, -1, "learning rate");
    WRONG(learning_rate, 0.3, "learning rate");
    WRONG(learning_rate, no_number, "learning rate");
    WRONG(scale, 1.5, "scale");
    WRONG(scale, -0.5, "scale");
    WRONG(intensity, no_number, "intensity");
    WRONG(noise, 2, "noise");
    double lengths[] = {-1, no_number, strtod("inf", NULL), 1e300};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        options = quick_tuning();
        options.steps = 0;
        options.seconds = lengths[i];
        FAILS(MDM_ERROR_INVALID_ARGUMENT, "seconds", mdm_fitter_tune(fitter, &options, NULL, NULL, &model, &error));
    }
    /* Larger than any memory. */
    options = quick_tuning();
    options.batch = 65536;
    options.size = 8192;
    mdm_status status = mdm_fitter_tune(fitter, &options, NULL, NULL, &model, NULL);
    CHECK(status == MDM_ERROR_OUT_OF_MEMORY || status == MDM_ERROR_INVALID_ARGUMENT);
    options = quick_tuning();
    mdm_tune_report report = MDM_TUNE_REPORT_INIT;
    report.struct_size = 1;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "struct_size", mdm_fitter_tune(fitter, &options, NULL, &report, &model, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "model is NULL", mdm_fitter_tune(fitter, &options, NULL, NULL, NULL, &error));
    FAILS(MDM_ERROR_INVALID_HANDLE, "NULL", mdm_fitter_tune(NULL, &options, NULL, NULL, &model, &error));
    FAILS(MDM_ERROR_INVALID_HANDLE, "not a fitter",
          mdm_fitter_tune((mdm_fitter *)device, &options, NULL, NULL, &model, &error));
    struct {
        mdm_tune_options known;
        uint64_t unknown;
    } newer = {quick_tuning(), 1};
    newer.known.struct_size = sizeof newer;
    FAILS(MDM_ERROR_ABI, "newer libmdm", mdm_fitter_tune(fitter, &newer.known, NULL, NULL, &model, &error));
    mdm_fitter_free(fitter);

    fitter = fitter_with(0);
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "no pixel is labelled", mdm_fitter_tune(fitter, &options, NULL, NULL, &model, &error));
    mdm_image image = grey_image(pixels, SIDE, SIDE);
    static unsigned char ones[PIXELS];
    memset(ones, 1, PIXELS);
    mdm_labels said = labels_of(ones);
    OK(mdm_fitter_set_image(fitter, "a", &image, &error));
    OK(mdm_fitter_set_labels(fitter, "a", &said, NULL, NULL, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "only class 1", mdm_fitter_tune(fitter, &options, NULL, NULL, &model, &error));
    CHECK(model == NULL);
    mdm_fitter_free(fitter);
}

typedef struct {
    int calls;
    double last;
    uint64_t done, all;
} watcher;

static int32_t watch(void *user_data, const mdm_progress *progress) {
    watcher *seen = user_data;
    CHECK(progress->struct_size == sizeof(mdm_progress));
    CHECK(progress->fraction >= seen->last && progress->fraction <= 1 && progress->windows_done <= progress->windows);
    CHECK(seen->calls == 0 || progress->windows == seen->all);
    seen->calls++;
    seen->last = progress->fraction;
    seen->done = progress->windows_done;
    seen->all = progress->windows;
    return 0;
}

static void tuned(const char *folder) {
    mdm_fitter *fitter = fitter_with(1);
    mdm_tune_options options = quick_tuning();
    mdm_tune_report report = MDM_TUNE_REPORT_INIT;
    mdm_model *model = NULL;
    watcher seen = {0, 0, 0, 0};
    mdm_run run = MDM_RUN_INIT;
    run.progress = watch;
    run.user_data = &seen;
    if (!WATCHED) {
        options.steps = 60;
        options.batch = 4;
        options.learning_rate = 0.001;
        options.held_out = 1;
    }
    OK(mdm_fitter_tune(fitter, &options, &run, &report, &model, &error));
    CHECK(seen.calls > 0 && seen.last == 1 && seen.done == options.steps && seen.all == options.steps);
    CHECK(report.struct_size == sizeof report && report.steps == options.steps && report.seconds > 0);
    CHECK(report.loss > 0 && report.accuracy >= 0 && report.accuracy <= 1);
    /* One image is too few to hold any out. */
    CHECK(report.held_out_images == 0 && report.held_out_dice == 0 && report.held_out_object_dice == 0);

    /* The fitter has no heads still; the model has one, and weights of its own. */
    mdm_fitter_info info = MDM_FITTER_INFO_INIT;
    OK(mdm_fitter_get_info(fitter, &info, &error));
    CHECK(info.heads == 0 && info.images == 1);
    mdm_fitter_free(fitter);
    mdm_model_info about = MDM_MODEL_INFO_INIT;
    OK(mdm_model_get_info(model, &about, &error));
    CHECK(about.heads == 1 && about.classes == 2 && about.has_backbone == 1);
    mdm_class_info class_info = MDM_CLASS_INFO_INIT;
    OK(mdm_model_class(model, 1, &class_info, &error));
    CHECK(strcmp(class_info.name, "bright") == 0 && class_info.red == 250);
    unsigned char first[PIXELS], second[PIXELS];
    segment(model, device, pixels, first);
    size_t right = 0;
    for (size_t i = 0; i < PIXELS; i++) right += first[i] == is_bright(i);
    CHECK(WATCHED || right > PIXELS * 9 / 10);
    const char *path = in_folder(folder, "tuned.safetensors");
    OK(mdm_model_save(model, path, MDM_SAVE_BACKBONE | MDM_SAVE_HEADS, MDM_STORED_AS_IS, &error));
    mdm_model_free(model);
    OK(mdm_model_open(path, &model, &error));
    segment(model, device, pixels, second);
    CHECK(memcmp(first, second, PIXELS) == 0);
    mdm_model_free(model);
}

/* A trial that leaves images out is the first half of the run, whether steps or time end it. */
static void held_out(void) {
    mdm_fitter *fitter = fitter_with(4);
    for (int timed = 0; timed < 2; timed++) {
        mdm_tune_options options = quick_tuning();
        mdm_tune_report report = MDM_TUNE_REPORT_INIT;
        mdm_model *model = NULL;
        watcher seen = {0, 0, 0, 0};
        mdm_run run = MDM_RUN_INIT;
        run.progress = watch;
        run.user_data = &seen;
        options.held_out = 1;
        options.quarter_turns = 1;
        options.unmirrored = 1;
        options.scale = options.intensity = options.noise = -1;
        options.loss = MDM_TUNE_LOSS_BOUNDARY_WEIGHTED;
        options.steps = timed ? 0 : 2;
        options.seconds = timed ? 0.3 : 0;
        OK(mdm_fitter_tune(fitter, &options, &run, &report, &model, &error));
        CHECK(seen.last == 1 && seen.done == seen.all && seen.all == (timed ? 600 : 4));
        CHECK(report.held_out_images == 1 && report.steps >= 1 && (timed || report.steps == 2));
        CHECK(report.held_out_dice >= 0 && report.held_out_dice <= 1 && report.held_out_mean_iou > 0);
        mdm_model_free(model);
    }
    mdm_fitter_free(fitter);
}

static int32_t stop(void *user_data, const mdm_progress *progress) {
    (void)user_data;
    (void)progress;
    return 1;
}

static int32_t use_the_fitter(void *user_data, const mdm_progress *progress) {
    (void)progress;
    mdm_fitter_info info = MDM_FITTER_INFO_INIT;
    CHECK(mdm_fitter_get_info(user_data, &info, NULL) == MDM_ERROR_BUSY);
    return 0;
}

static int32_t free_the_fitter(void *user_data, const mdm_progress *progress) {
    (void)progress;
    mdm_fitter_free(user_data);
    return 0;
}

static void stopped(void) {
    mdm_fitter *fitter = fitter_with(1);
    mdm_tune_options options = quick_tuning();
    mdm_model *model = NULL;
    mdm_cancel *cancel = NULL;
    mdm_run run = MDM_RUN_INIT;
    OK(mdm_cancel_new(&cancel, &error));
    OK(mdm_cancel_raise(cancel, &error));
    run.cancel = cancel;
    FAILS(MDM_ERROR_CANCELLED, "cancelled", mdm_fitter_tune(fitter, &options, &run, NULL, &model, &error));
    mdm_cancel_free(cancel);
    FAILS(MDM_ERROR_INVALID_HANDLE, "cancel token", mdm_fitter_tune(fitter, &options, &run, NULL, &model, &error));
    mdm_run watched = MDM_RUN_INIT;
    /* The last report is heard too. */
    options.steps = 1;
    watched.progress = stop;
    FAILS(MDM_ERROR_CANCELLED, "cancelled", mdm_fitter_tune(fitter, &options, &watched, NULL, &model, &error));
    CHECK(model == NULL);
    watched.user_data = fitter;
    watched.progress = use_the_fitter;
    OK(mdm_fitter_tune(fitter, &options, &watched, NULL, &model, &error));
    mdm_model_free(model);
    model = NULL;
    watched.progress = free_the_fitter;
    options.steps = 1000000;
    FAILS(MDM_ERROR_CANCELLED, "cancelled", mdm_fitter_tune(fitter, &options, &watched, NULL, &model, &error));
    CHECK(model == NULL);
    FAILS(MDM_ERROR_INVALID_HANDLE, "freed", mdm_fitter_tune(fitter, &options, NULL, NULL, &model, &error));
}

int main(int count, char **arguments) {
    CHECK(count == 2);
    draw_image(pixels, labels);
    mdm_device_options options = MDM_DEVICE_OPTIONS_INIT;
    options.threads = 2;
    OK(mdm_device_open("cpu", &options, &device, &error));
    OK(mdm_model_open(in_folder(arguments[1], "backbone.safetensors"), &backbone, &error));
    wrong_options();
    tuned(arguments[1]);
    if (!WATCHED) held_out();
    stopped();
    mdm_model_free(backbone);
    mdm_device_free(device);
    CHECK(mdm_object_count() == 0);
    return 0;
}
