/* Every function of head fitting, and every error that a caller can cause. Usage: fitter FOLDER */
#include "train.h"

static mdm_device *device;
static mdm_model *model;
static unsigned char pixels[PIXELS], labels[PIXELS];

static void versions(void) {
    CHECK(mdm_train_abi_version() == MDM_TRAIN_ABI_VERSION);
    OK(mdm_train_check_abi(1, &error));
    OK(mdm_train_check_abi(MDM_TRAIN_ABI_VERSION, &error));
    FAILS(MDM_ERROR_ABI, "newer libmdm_train", mdm_train_check_abi(MDM_TRAIN_ABI_VERSION + 1, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "MDM_TRAIN_ABI_VERSION", mdm_train_check_abi(0, &error));
    /* The inference library is there too. */
    OK(mdm_check_abi(MDM_ABI_VERSION, &error));
}

static void wrong_options(void) {
    mdm_fitter *fitter = NULL;
    mdm_fitter_options options = MDM_FITTER_OPTIONS_INIT, same;
    memset(&same, 7, sizeof same);
    mdm_fitter_options_init(&same, sizeof same);
    CHECK(same.struct_size == sizeof same && same.classes == 0 && same.reserved == 0);
    mdm_labels said = MDM_LABELS_INIT;
    mdm_labels_init(&said, sizeof said);
    CHECK(said.struct_size == sizeof said && said.labels == NULL);
#define WRONG(member, value, words)                                                                    \
    do {                                                                                               \
        options = quick_options();                                                                     \
        options.member = (value);                                                                      \
        FAILS(MDM_ERROR_INVALID_ARGUMENT, words, mdm_fitter_new(model, device, NULL, &options, &fitter, &error)); \
        CHECK(fitter == NULL);                                                                         \
    } while (0)
    WRONG(classes, 0, "classes");
    WRONG(classes, 256, "classes");
    WRONG(heads, 1001, "ensemble");
    WRONG(balance, 2, "balance");
    WRONG(held_out, 9, "held_out");
    WRONG(batch, 1, "batch");
    WRONG(refine_batch, 1, "batch");
    WRONG(learning_rate, 2.0, "learning_rate");
    WRONG(refine_learning_rate, -1.0, "learning_rate");
    WRONG(fraction, 1.5, "fraction");
    WRONG(max_samples, 1, "max_samples");
    WRONG(reserved, 1, "reserved");
    WRONG(struct_size, 3, "struct_size");
    static const char *const no_utf8[2] = {"ground", "\xff"};
    WRONG(class_names, no_utf8, "UTF-8");
    static const char *const missing[2] = {"ground", NULL};
    WRONG(class_names, missing, "NULL");
    options = quick_options();
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "NULL", mdm_fitter_new(model, device, NULL, NULL, &fitter, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "fitter is NULL", mdm_fitter_new(model, device, NULL, &options, NULL, &error));
    FAILS(MDM_ERROR_INVALID_HANDLE, "model is NULL", mdm_fitter_new(NULL, device, NULL, &options, &fitter, &error));
    FAILS(MDM_ERROR_INVALID_HANDLE, "not a device",
          mdm_fitter_new(model, (mdm_device *)model, NULL, &options, &fitter, &error));
    struct {
        mdm_fitter_options known;
        uint64_t unknown;
    } newer = {quick_options(), 0};
    newer.known.struct_size = sizeof newer;
    OK(mdm_fitter_new(model, device, NULL, &newer.known, &fitter, &error));
    mdm_fitter_free(fitter);
    fitter = NULL;
    newer.unknown = 1;
    FAILS(MDM_ERROR_ABI, "newer libmdm", mdm_fitter_new(model, device, NULL, &newer.known, &fitter, &error));
    mdm_feature_options features = MDM_FEATURE_OPTIONS_INIT;
    uint32_t block = 99;
    features.blocks = &block;
    features.block_count = 1;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "block", mdm_fitter_new(model, device, &features, &options, &fitter, &error));
}

static void wrong_labels(mdm_fitter *fitter) {
    mdm_image image = grey_image(pixels, SIDE, SIDE);
    mdm_labels said = labels_of(labels);
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "no image", mdm_fitter_set_labels(fitter, "a", &said, NULL, NULL, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "name is NULL", mdm_fitter_set_image(fitter, NULL, &image, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "NULL", mdm_fitter_set_image(fitter, "a", NULL, &error));
    image.pixels_size = 7;
    FAILS(MDM_ERROR_IMAGE, "7", mdm_fitter_set_image(fitter, "a", &image, &error));
    image = grey_image(pixels, SIDE, SIDE);
    OK(mdm_fitter_set_image(fitter, "a", &image, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "NULL", mdm_fitter_set_labels(fitter, "a", NULL, NULL, NULL, &error));
    FAILS(MDM_ERROR_INVALID_HANDLE, "NULL", mdm_fitter_set_labels(NULL, "a", &said, NULL, NULL, &error));
#define BAD(member, value, words)                                                                              \
    do {                                                                                                       \
        said = labels_of(labels);                                                                              \
        said.member = (value);                                                                                 \
        FAILS(MDM_ERROR_INVALID_ARGUMENT, words, mdm_fitter_set_labels(fitter, "a", &said, NULL, NULL, &error)); \
    } while (0)
    BAD(labels, NULL, "labels");
    BAD(labels_size, PIXELS - 1, "given");
    BAD(row_stride, SIDE - 1, "given");
    BAD(row_stride, (size_t)-1, "given");
    BAD(width, 0, "0 x");
    BAD(width, SIDE - 1, "one size");
    BAD(height, 0xffffffffu, "labels");
    BAD(label_type, 2, "label_type");
    BAD(label_type, MDM_LABEL_U16, "given");
    BAD(reserved, 1, "reserved");
    labels[5] = 2;
    BAD(reserved, 0, "label 2");
    labels[5] = MDM_UNLABELLED;
    static uint16_t wide[PIXELS];
    for (size_t i = 0; i < PIXELS; i++) wide[i] = labels[i];
    said = labels_of(labels);
    said.labels = wide;
    said.labels_size = sizeof wide;
    said.label_type = MDM_LABEL_U16;
    mdm_label_report report = MDM_LABEL_REPORT_INIT;
    OK(mdm_fitter_set_labels(fitter, "a", &said, NULL, &report, &error));
    CHECK(report.labelled > 0 && report.windows > 0);
    wide[7] = 256;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "256", mdm_fitter_set_labels(fitter, "a", &said, NULL, NULL, &error));
    report.struct_size = 1;
    said = labels_of(labels);
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "struct_size", mdm_fitter_set_labels(fitter, "a", &said, NULL, &report, &error));
}

static int32_t count(void *user_data, const mdm_progress *progress) {
    int *calls = user_data;
    CHECK(progress->struct_size == sizeof(mdm_progress));
    CHECK(progress->fraction >= 0 && progress->fraction <= 1 && progress->windows_done <= progress->windows);
    return ++*calls == -1;
}

static int32_t use_the_fitter(void *user_data, const mdm_progress *progress) {
    (void)progress;
    mdm_fitter_info info = MDM_FITTER_INFO_INIT;
    CHECK(mdm_fitter_get_info(user_data, &info, NULL) == MDM_ERROR_BUSY);
    return 1;
}

static int32_t free_the_fitter(void *user_data, const mdm_progress *progress) {
    (void)progress;
    mdm_fitter_free(user_data);
    return 0;
}

static void scribbles(const char *folder) {
    mdm_fitter *fitter = NULL;
    mdm_fitter_options options = quick_options();
    mdm_fitter_info info = MDM_FITTER_INFO_INIT;
    mdm_fit_report report = MDM_FIT_REPORT_INIT;
    mdm_label_report said = MDM_LABEL_REPORT_INIT;
    mdm_model *made = NULL;
    OK(mdm_fitter_new(model, device, NULL, &options, &fitter, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "two classes", mdm_fitter_fit(fitter, NULL, &report, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "fitted", mdm_fitter_model(fitter, &made, &error));
    CHECK(made == NULL);
    wrong_labels(fitter);

    int calls = 0;
    mdm_run run = MDM_RUN_INIT;
    run.progress = count;
    run.user_data = &calls;
    OK(mdm_fitter_fit(fitter, &run, &report, &error));
    CHECK(calls > 0 && report.samples > 0 && report.steps == 2 * 30 && report.held_out_samples > 0);
    CHECK(report.accuracy > 0.9 && report.accuracy <= 1 && report.seconds > 0 && report.loss < 0.7 && report.on_gpu == 0);
    OK(mdm_fitter_get_info(fitter, &info, &error));
    CHECK(info.images == 1 && info.classes == 2 && info.heads == 2 && info.samples == report.samples);
    uint64_t ones = 0, zeros = 0;
    OK(mdm_fitter_class_pixels(fitter, 0, &zeros, &error));
    OK(mdm_fitter_class_pixels(fitter, 1, &ones, &error));
    CHECK(ones > 0 && zeros > 0 && ones + zeros <= PIXELS);
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "no class 2", mdm_fitter_class_pixels(fitter, 2, &ones, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "pixels is NULL", mdm_fitter_class_pixels(fitter, 0, NULL, &error));

    /* More of the image is labelled; the features are there. */
    for (size_t i = 0; i < PIXELS; i++) labels[i] = is_bright(i);
    mdm_labels all = labels_of(labels);
    OK(mdm_fitter_set_labels(fitter, "a", &all, &run, &said, &error));
    CHECK(said.labelled == PIXELS && said.windows == 0 && said.fresh > 0 && said.fresh < said.samples);
    OK(mdm_fitter_refine(fitter, &run, &report, &error));
    CHECK(report.steps == 2 * 10 && report.samples == said.samples && report.held_out_samples == 0);

    /* The model segments at once, and from its file. */
    OK(mdm_fitter_model(fitter, &made, &error));
    const char *path = in_folder(folder, "fitted.safetensors");
    OK(mdm_model_save(made, path, MDM_SAVE_BACKBONE | MDM_SAVE_HEADS, MDM_STORED_AS_IS, &error));
    OK(mdm_model_save(made, in_folder(folder, "fitted-heads.safetensors"), MDM_SAVE_HEADS, MDM_STORED_AS_IS, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "parts", mdm_model_save(made, path, 0, 0, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "parts", mdm_model_save(made, path, 4, 0, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "stored", mdm_model_save(made, path, MDM_SAVE_BACKBONE, 4, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "path", mdm_model_save(made, NULL, MDM_SAVE_BACKBONE, 0, &error));
    FAILS(MDM_ERROR_INVALID_HANDLE, "NULL", mdm_model_save(NULL, path, MDM_SAVE_BACKBONE, 0, &error));
    FAILS(MDM_ERROR_IO, "nowhere", mdm_model_save(made, in_folder(folder, "nowhere/m"), MDM_SAVE_HEADS, 0, &error));
    unsigned char first[PIXELS], second[PIXELS];
    segment(made, device, pixels, first);
    size_t right = 0;
    for (size_t i = 0; i < PIXELS; i++) right += first[i] == is_bright(i);
    CHECK(right > PIXELS * 9 / 10);
    mdm_class_info class_info = MDM_CLASS_INFO_INIT;
    OK(mdm_model_class(made, 1, &class_info, &error));
    CHECK(strcmp(class_info.name, "bright") == 0 && class_info.red == 250 && class_info.blue == 30);
    mdm_model_free(made);
    OK(mdm_model_open(path, &made, &error));
    segment(made, device, pixels, second);
    CHECK(memcmp(first, second, PIXELS) == 0);
    mdm_fitter *next = NULL;
    OK(mdm_fitter_new(made, device, NULL, &options, &next, &error));
    OK(mdm_fitter_get_info(next, &info, &error));
    CHECK(info.heads == 2 && info.images == 0);
    mdm_fitter_free(next);
    mdm_model_free(made);

    /* Erased labels are forgotten, and so are images. */
    memset(labels, MDM_UNLABELLED, PIXELS);
    OK(mdm_fitter_set_labels(fitter, "a", &all, NULL, &said, &error));
    CHECK(said.labelled == 0 && said.samples == 0);
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "two classes", mdm_fitter_refine(fitter, NULL, NULL, &error));
    OK(mdm_fitter_remove(fitter, "a", &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "no image", mdm_fitter_remove(fitter, "a", &error));
    OK(mdm_fitter_set_classes(fitter, NULL, NULL, 3, &error));
    OK(mdm_fitter_get_info(fitter, &info, &error));
    CHECK(info.images == 0 && info.samples == 0 && info.classes == 3 && info.heads == 0);
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "classes", mdm_fitter_set_classes(fitter, NULL, NULL, 1, &error));
    mdm_fitter_free(fitter);
    FAILS(MDM_ERROR_INVALID_HANDLE, "freed", mdm_fitter_fit(fitter, NULL, NULL, &error));
    mdm_fitter_free(fitter);
    mdm_fitter_free(NULL);
}

static void stopped(void) {
    mdm_fitter *fitter = NULL;
    mdm_fitter_options options = quick_options();
    mdm_cancel *cancel = NULL;
    OK(mdm_fitter_new(model, device, NULL, &options, &fitter, &error));
    mdm_image image = grey_image(pixels, SIDE, SIDE);
    OK(mdm_fitter_set_image(fitter, "a", &image, &error));
    for (size_t i = 0; i < PIXELS; i++) labels[i] = is_bright(i);
    mdm_labels all = labels_of(labels);
    OK(mdm_cancel_new(&cancel, &error));
    OK(mdm_cancel_raise(cancel, &error));
    mdm_run run = MDM_RUN_INIT;
    run.cancel = cancel;
    FAILS(MDM_ERROR_CANCELLED, "cancelled", mdm_fitter_set_labels(fitter, "a", &all, &run, NULL, &error));
    OK(mdm_fitter_set_labels(fitter, "a", &all, NULL, NULL, &error));
    FAILS(MDM_ERROR_CANCELLED, "cancelled", mdm_fitter_fit(fitter, &run, NULL, &error));
    mdm_cancel_free(cancel);
    FAILS(MDM_ERROR_INVALID_HANDLE, "cancel token", mdm_fitter_fit(fitter, &run, NULL, &error));
    mdm_run busy = MDM_RUN_INIT;
    busy.progress = use_the_fitter;
    busy.user_data = fitter;
    mdm_status status = mdm_fitter_fit(fitter, &busy, NULL, NULL);
    CHECK(status == MDM_ERROR_CANCELLED || status == MDM_OK);
    busy.progress = free_the_fitter;
    status = mdm_fitter_fit(fitter, &busy, NULL, NULL);
    CHECK(status == MDM_ERROR_CANCELLED || status == MDM_OK);
    FAILS(MDM_ERROR_INVALID_HANDLE, "freed", mdm_fitter_fit(fitter, NULL, NULL, &error));
}

int main(int count, char **arguments) {
    CHECK(count == 2);
    draw_image(pixels, labels);
    mdm_device_options options = MDM_DEVICE_OPTIONS_INIT;
    options.threads = 2;
    OK(mdm_device_open("cpu", &options, &device, &error));
    OK(mdm_model_open(in_folder(arguments[1], "backbone.safetensors"), &model, &error));
    versions();
    wrong_options();
    scribbles(arguments[1]);
    stopped();
    mdm_model_free(model);
    mdm_device_free(device);
    CHECK(mdm_object_count() == 0);
    return 0;
}
