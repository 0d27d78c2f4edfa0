/* Every function, every error that a caller can cause, every format. Usage: interface FOLDER */
#include "check.h"

enum { WIDTH = 70, HEIGHT = 50, PIXELS = WIDTH * HEIGHT };

static mdm_device *device;
static mdm_model *model;
static unsigned char pixels[PIXELS * 4];

static void versions_and_errors(const char *folder) {
    char version[64];
    snprintf(version, sizeof version, "%d.%d.%d", MDM_VERSION_MAJOR, MDM_VERSION_MINOR, MDM_VERSION_PATCH);
    CHECK(strcmp(mdm_version(), version) == 0);
    CHECK(mdm_abi_version() == MDM_ABI_VERSION);
    OK(mdm_check_abi(1, &error));
    OK(mdm_check_abi(MDM_ABI_VERSION, &error));
    FAILS(MDM_ERROR_ABI, "newer libmdm", mdm_check_abi(MDM_ABI_VERSION + 1, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "MDM_ABI_VERSION", mdm_check_abi(0, &error));
    CHECK(mdm_check_abi(0, NULL) == MDM_ERROR_INVALID_ARGUMENT);

    for (mdm_status status = MDM_OK; status <= MDM_ERROR_INTERNAL; status++) {
        CHECK(strncmp(mdm_status_name(status), "MDM_", 4) == 0);
    }
    CHECK(strcmp(mdm_status_name(-1), "unknown") == 0);
    CHECK(strcmp(mdm_status_name(9999), "unknown") == 0);

    CHECK(mdm_error_status(NULL) == MDM_OK);
    CHECK(strcmp(mdm_error_message(NULL), "") == 0);
    mdm_error_free(NULL);
    mdm_error *error = NULL;
    size_t before = mdm_object_count();
    CHECK(mdm_model_open(in_folder(folder, "none"), &model, &error) == MDM_ERROR_IO);
    CHECK(mdm_object_count() == before + 1);
    CHECK(model == NULL);
    CHECK(strstr(mdm_error_message(error), "none") != NULL);
    mdm_error *stale = error;
    mdm_error_free(error);
    CHECK(mdm_object_count() == before);
    mdm_error_free(stale);
    CHECK(mdm_error_status(stale) == MDM_ERROR_INVALID_HANDLE);
    CHECK(strcmp(mdm_error_message(stale), "") == 0);
    int local = 0;
    CHECK(strcmp(mdm_error_message((mdm_error *)&local), "") == 0);
    mdm_error_free((mdm_error *)&local);
}

static int messages[5];

static void count_message(void *user_data, mdm_log_level level, const char *message) {
    CHECK(user_data == messages);
    CHECK(level >= MDM_LOG_ERROR && level <= MDM_LOG_DEBUG);
    CHECK(message[0] != 0 && strchr(message, '\n') == NULL);
    messages[level]++;
    CHECK(mdm_log_set(NULL, MDM_LOG_OFF, NULL, NULL) == MDM_ERROR_BUSY);
}

static void log_messages(void) {
    mdm_device *other = NULL;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "log level", mdm_log_set(count_message, 5, messages, &error));
    OK(mdm_log_set(count_message, MDM_LOG_INFO, messages, &error));
    OK(mdm_device_open("cpu", NULL, &other, &error));
    CHECK(messages[MDM_LOG_INFO] == 1);
    CHECK(mdm_model_open("none", NULL, NULL) == MDM_ERROR_INVALID_ARGUMENT);
    CHECK(messages[MDM_LOG_DEBUG] == 0);
    OK(mdm_log_set(count_message, MDM_LOG_DEBUG, messages, &error));
    CHECK(mdm_model_open("none", NULL, NULL) == MDM_ERROR_INVALID_ARGUMENT);
    CHECK(messages[MDM_LOG_DEBUG] == 1);
    OK(mdm_log_set(NULL, MDM_LOG_OFF, NULL, &error));
    CHECK(mdm_model_open("none", NULL, NULL) == MDM_ERROR_INVALID_ARGUMENT);
    CHECK(messages[MDM_LOG_DEBUG] == 1);
    mdm_device_free(other);
}

static void devices(void) {
    mdm_device_list *list = NULL;
    mdm_device_info info = MDM_DEVICE_INFO_INIT;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "list is NULL", mdm_device_list_new(NULL, &error));
    OK(mdm_device_list_new(&list, &error));
    size_t count = mdm_device_list_count(list);
    CHECK(count >= 1);
    CHECK(mdm_device_list_count(NULL) == 0);
    OK(mdm_device_list_info(list, count - 1, &info, &error));
    CHECK(info.kind == MDM_DEVICE_CPU && info.threads >= 1);
    CHECK(strcmp(info.backend, "cpu") == 0);
    CHECK(info.name[0] != 0 && info.instruction_set[0] != 0 && info.driver[0] == 0 && info.supports[0] == 0);
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "there is no device", mdm_device_list_info(list, count, &info, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "is NULL", mdm_device_list_info(list, 0, NULL, &error));
    FAILS(MDM_ERROR_INVALID_HANDLE, "device list", mdm_device_list_info(NULL, 0, &info, &error));
    mdm_device_list_free(list);
    FAILS(MDM_ERROR_INVALID_HANDLE, "freed", mdm_device_list_info(list, 0, &info, &error));
    mdm_device_list_free(list);
    mdm_device_list_free(NULL);

    mdm_device_options options = MDM_DEVICE_OPTIONS_INIT;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "device is NULL", mdm_device_open("cpu", NULL, NULL, &error));
    FAILS(MDM_ERROR_DEVICE, "no such thing", mdm_device_open("no such thing", NULL, &device, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "UTF-8", mdm_device_open("\xff", NULL, &device, &error));
    CHECK(device == NULL);
    options.threads = 1000000;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "threads", mdm_device_open("cpu", &options, &device, &error));
    options.threads = 0;
    options.precision = 7;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "precision", mdm_device_open("cpu", &options, &device, &error));
    options.precision = MDM_PRECISION_F32;
    options.pipeline_cache = "\xc0";
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "pipeline_cache", mdm_device_open("cpu", &options, &device, &error));
    mdm_device_options_init(&options, sizeof options);
    options.threads = 1;
    OK(mdm_device_open("cpu", &options, &device, &error));
    OK(mdm_device_get_info(device, &info, &error));
    CHECK(info.threads == 1);
    CHECK(strstr(mdm_device_reason(device), "cpu") != NULL);
    CHECK(strcmp(mdm_device_reason(NULL), "") == 0);
    FAILS(MDM_ERROR_INVALID_HANDLE, "NULL", mdm_device_get_info(NULL, &info, &error));
    mdm_device *any = NULL;
    OK(mdm_device_open(NULL, NULL, &any, &error));
    CHECK(mdm_device_reason(any)[0] != 0);
    mdm_device_free(any);
    mdm_device_free(any);
    mdm_device_free(NULL);
}

static void struct_sizes(void) {
    mdm_device *other = NULL;
    struct {
        mdm_device_options options;
        unsigned char more[16];
    } newer;
    memset(&newer, 0, sizeof newer);
    newer.options.struct_size = sizeof newer;
    newer.options.threads = 1;
    OK(mdm_device_open("cpu", &newer.options, &other, &error));
    mdm_device_free(other);
    newer.more[9] = 1;
    FAILS(MDM_ERROR_ABI, "newer libmdm", mdm_device_open("cpu", &newer.options, &other, &error));
    /* As if pipeline_cache had not been there yet. */
    newer.options.struct_size = offsetof(mdm_device_options, pipeline_cache);
    newer.options.pipeline_cache = (const char *)1;
    OK(mdm_device_open("cpu", &newer.options, &other, &error));
    struct {
        mdm_device_info info;
        unsigned char more[16];
    } told;
    memset(&told, 1, sizeof told);
    told.info.struct_size = sizeof told;
    OK(mdm_device_get_info(other, &told.info, &error));
    CHECK(told.info.struct_size == sizeof told && told.info.threads == 1 && told.more[0] == 0 && told.more[15] == 0);
    memset(&told, 1, sizeof told);
    told.info.struct_size = offsetof(mdm_device_info, kind);
    OK(mdm_device_get_info(other, &told.info, &error));
    CHECK(told.info.memory == 0 && told.info.kind == 0x01010101);
    mdm_device_free(other);
    const size_t half_a_pointer = offsetof(mdm_device_options, pipeline_cache) + sizeof(void *) / 2;
    const size_t wrong[] = {0, 1, sizeof(size_t) - 1, 5000, (size_t)-1, half_a_pointer};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        newer.options.struct_size = wrong[i];
        FAILS(MDM_ERROR_INVALID_ARGUMENT, "struct_size", mdm_device_open("cpu", &newer.options, &other, &error));
        told.info.struct_size = wrong[i];
        FAILS(MDM_ERROR_INVALID_ARGUMENT, "struct_size", mdm_device_get_info(device, &told.info, &error));
    }
    /* Initialisers do what the macros do. */
#define SAME(type, function, macro)                         \
    do {                                                    \
        type by_macro = macro, by_function;                 \
        function(&by_function, sizeof by_function);         \
        CHECK(memcmp(&by_macro, &by_function, sizeof by_macro) == 0); \
        function(NULL, sizeof by_function);                 \
    } while (0)
    SAME(mdm_device_options, mdm_device_options_init, MDM_DEVICE_OPTIONS_INIT);
    SAME(mdm_segment_options, mdm_segment_options_init, MDM_SEGMENT_OPTIONS_INIT);
    SAME(mdm_feature_options, mdm_feature_options_init, MDM_FEATURE_OPTIONS_INIT);
    SAME(mdm_image, mdm_image_init, MDM_IMAGE_INIT);
    SAME(mdm_result, mdm_result_init, MDM_RESULT_INIT);
    SAME(mdm_run, mdm_run_init, MDM_RUN_INIT);
    SAME(mdm_source, mdm_source_init, MDM_SOURCE_INIT);
    SAME(mdm_sink, mdm_sink_init, MDM_SINK_INIT);
}

static unsigned char *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    unsigned char *bytes = malloc(*size);
    CHECK(bytes != NULL && fread(bytes, 1, *size, file) == *size);
    fclose(file);
    return bytes;
}

static void models(const char *folder) {
    mdm_model *other = NULL;
    mdm_model_info info = MDM_MODEL_INFO_INIT;
    mdm_class_info class_info = MDM_CLASS_INFO_INIT;
    mdm_block_info block = MDM_BLOCK_INFO_INIT;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "path is NULL", mdm_model_open(NULL, &other, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "UTF-8", mdm_model_open("\xe4", &other, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "model is NULL", mdm_model_open("a", NULL, &error));
    FAILS(MDM_ERROR_IO, "none", mdm_model_open(in_folder(folder, "none"), &other, &error));
    FAILS(MDM_ERROR_MODEL, "regular file", mdm_model_open(folder, &other, &error));
    FAILS(MDM_ERROR_TENSOR, "tensor", mdm_model_open(in_folder(folder, "torn.safetensors"), &other, &error));
    OK(mdm_model_open(in_folder(folder, "mod\xc3\xa8le.safetensors"), &model, &error));
    OK(mdm_model_get_info(model, &info, &error));
    CHECK(info.classes == 3 && info.heads == 2 && info.has_backbone == 1 && info.window == 32);
    CHECK(info.microns_per_pixel == 0.5 && info.overlap == 0.25 && info.input_channels == 3 && info.parameters > 0);
    CHECK(strstr(info.path, "mod\xc3\xa8le") != NULL && strcmp(info.description, "a test") == 0);
    CHECK(info.last_timestep == 1000 && info.blocks >= 1 && info.assumptions == 0);
    CHECK(mdm_model_assumption(model, 0) == NULL && mdm_model_assumption(NULL, 0) == NULL);
    OK(mdm_model_class(model, 1, &class_info, &error));
    CHECK(strcmp(class_info.name, "nucleus") == 0 && class_info.red == 1 && class_info.green == 2 && class_info.blue == 3);
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "no class 3", mdm_model_class(model, 3, &class_info, &error));
    OK(mdm_model_block(model, 0, &block, &error));
    CHECK(block.channels == 32 && block.downsampling >= 1);
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "no block", mdm_model_block(model, info.blocks, &block, &error));
    FAILS(MDM_ERROR_INVALID_HANDLE, "NULL", mdm_model_get_info(NULL, &info, &error));
    FAILS(MDM_ERROR_INVALID_HANDLE, "is a device", mdm_model_get_info((mdm_model *)(void *)device, &info, &error));
    FAILS(MDM_ERROR_INVALID_HANDLE, "NULL", mdm_model_class(NULL, 0, &class_info, &error));
    FAILS(MDM_ERROR_INVALID_HANDLE, "NULL", mdm_model_block(NULL, 0, &block, &error));

    const char *heads = in_folder(folder, "heads.safetensors"), *backbone = in_folder(folder, "backbone.safetensors");
    OK(mdm_model_open_heads(heads, backbone, &other, &error));
    mdm_model_free(other);
    FAILS(MDM_ERROR_MODEL, "holds no heads", mdm_model_open_heads(backbone, heads, &other, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "backbone is NULL", mdm_model_open_heads(heads, NULL, &other, &error));
    OK(mdm_model_open(backbone, &other, &error));
    mdm_segmenter *segmenter = NULL;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "no heads", mdm_segmenter_new(other, device, NULL, &segmenter, &error));
    mdm_model_free(other);
    OK(mdm_model_open(heads, &other, &error));
    FAILS(MDM_ERROR_MODEL, "without their backbone", mdm_segmenter_new(other, device, NULL, &segmenter, &error));
    mdm_model_free(other);
    OK(mdm_model_open(in_folder(folder, "plain.safetensors"), &other, &error));
    OK(mdm_model_get_info(other, &info, &error));
    CHECK(info.assumptions > 0 && mdm_model_assumption(other, 0)[0] != 0);
    mdm_model_free(other);

    size_t size = 0;
    unsigned char *bytes = read_file(in_folder(folder, "mod\xc3\xa8le.safetensors"), &size);
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "data", mdm_model_from_memory(NULL, size, &other, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "data", mdm_model_from_memory(bytes, (size_t)-1, &other, &error));
    FAILS(MDM_ERROR_MODEL, "is empty", mdm_model_from_memory(bytes, 0, &other, &error));
    FAILS(MDM_ERROR_MODEL, "in memory", mdm_model_from_memory(bytes, size - 1, &other, &error));
    OK(mdm_model_from_memory(bytes, size, &other, &error));
    memset(bytes, 0, size);
    free(bytes);
    OK(mdm_model_get_info(other, &info, &error));
    CHECK(info.classes == 3 && info.path[0] == 0);
    OK(mdm_segmenter_new(other, device, NULL, &segmenter, &error));
    mdm_model_free(other);
    mdm_model_free(other);
    mdm_model_free(NULL);
    unsigned char labels[PIXELS];
    mdm_image image = grey_image(pixels, WIDTH, HEIGHT);
    mdm_result result = labels_result(labels, sizeof labels);
    OK(mdm_segmenter_run(segmenter, &image, &result, NULL, NULL, &error));
    mdm_segmenter_free(segmenter);
}

static void segmenter_options(void) {
    mdm_segmenter *segmenter = NULL;
    mdm_segment_options options = MDM_SEGMENT_OPTIONS_INIT;
#define WRONG(member, value, words)                                                                     \
    do {                                                                                                \
        mdm_segment_options_init(&options, sizeof options);                                             \
        options.member = value;                                                                         \
        FAILS(MDM_ERROR_INVALID_ARGUMENT, words, mdm_segmenter_new(model, device, &options, &segmenter, &error)); \
    } while (0)
    WRONG(microns_per_pixel, -1, "microns_per_pixel");
    WRONG(microns_per_pixel, 0.0 / 0.0, "microns_per_pixel");
    WRONG(overlap, 1, "overlap");
    WRONG(overlap, -2, "overlap");
    WRONG(overlap, 0.0 / 0.0, "overlap");
    WRONG(batch, 0xffffffff, "batch");
    WRONG(window, 0xffffffff, "window");
    WRONG(combine, 2, "combine");
    WRONG(outputs, 4, "outputs");
    WRONG(corrupt, 3, "corrupt");
    WRONG(range, 5, "range");
    WRONG(range, MDM_RANGE_FIXED, "range");
    WRONG(range_high, 4095, "range_high");
    WRONG(reserved, 1, "reserved");
    CHECK(segmenter == NULL);
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "segmenter is NULL", mdm_segmenter_new(model, device, NULL, NULL, &error));
    FAILS(MDM_ERROR_INVALID_HANDLE, "model", mdm_segmenter_new(NULL, device, NULL, &segmenter, &error));
    FAILS(MDM_ERROR_INVALID_HANDLE, "device", mdm_segmenter_new(model, NULL, NULL, &segmenter, &error));
    mdm_segment_options_init(&options, sizeof options);
    options.overlap = MDM_OVERLAP_NONE;
    options.combine = MDM_COMBINE_VOTE;
    options.corrupt = MDM_CORRUPT_NO;
    options.batch = 3;
    OK(mdm_segmenter_new(model, device, &options, &segmenter, &error));
    unsigned char labels[PIXELS];
    mdm_image image = grey_image(pixels, WIDTH, HEIGHT);
    mdm_result result = labels_result(labels, sizeof labels);
    mdm_report report = MDM_REPORT_INIT;
    OK(mdm_segmenter_run(segmenter, &image, &result, NULL, &report, &error));
    CHECK(report.windows == 6);
    mdm_segmenter_free(segmenter);
    mdm_segmenter_free(segmenter);
    mdm_segmenter_free(NULL);
    FAILS(MDM_ERROR_INVALID_HANDLE, "freed", mdm_segmenter_run(segmenter, &image, &result, NULL, NULL, &error));
}

typedef struct {
    int calls, stop_at;
    double last;
} watched;

static int32_t watch(void *user_data, const mdm_progress *progress) {
    watched *state = user_data;
    CHECK(progress->struct_size == sizeof *progress && progress->windows > 0);
    CHECK(progress->fraction >= state->last && progress->fraction <= 1 && progress->windows_done <= progress->windows);
    state->last = progress->fraction;
    return state->calls++ == state->stop_at;
}

/* The grey image in every format gives the same labels. */
static void formats(mdm_segmenter *segmenter, const unsigned char *expected) {
    static const struct {
        mdm_pixel_format format;
        int samples, bytes;
    } all[] = {
        {MDM_PIXEL_GREY8, 1, 1}, {MDM_PIXEL_GREY16, 1, 2}, {MDM_PIXEL_GREY_F32, 1, 4}, {MDM_PIXEL_RGB8, 3, 1},
        {MDM_PIXEL_RGB16, 3, 2}, {MDM_PIXEL_RGB_F32, 3, 4}, {MDM_PIXEL_RGBA8, 4, 1},   {MDM_PIXEL_BGRA8, 4, 1},
        {MDM_PIXEL_RGBA16, 4, 2}, {MDM_PIXEL_GREY_I16, 1, 2}, {MDM_PIXEL_GREY_U32, 1, 4}, {MDM_PIXEL_GREY_I32, 1, 4},
        {MDM_PIXEL_GREY_F64, 1, 8}, {MDM_PIXEL_RGB_I16, 3, 2}, {MDM_PIXEL_RGB_U32, 3, 4}, {MDM_PIXEL_RGB_I32, 3, 4},
        {MDM_PIXEL_RGB_F64, 3, 8},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        for (int planar = 0; planar < 2; planar++) {
            size_t samples = (size_t)all[i].samples, bytes = (size_t)all[i].bytes;
            size_t row = WIDTH * bytes * (planar ? 1 : samples) + 5, plane = planar ? HEIGHT * row + 3 : 0;
            /* Exactly as large as it must be, at an odd address, so that a checker sees any byte too many. */
            size_t size = (HEIGHT - 1) * row + (row - 5) + (planar ? (samples - 1) * plane : 0);
            unsigned char *buffer = malloc(size + 1);
            CHECK(buffer != NULL);
            for (size_t y = 0; y < HEIGHT; y++) {
                for (size_t x = 0; x < WIDTH; x++) {
                    for (size_t s = 0; s < samples; s++) {
                        size_t at = 1 + y * row + (planar ? s * plane + x * bytes : (x * samples + s) * bytes);
                        uint16_t wide = (uint16_t)(pixels[y * WIDTH + x] * 257);
                        uint32_t whole = (uint32_t)pixels[y * WIDTH + x] * 16843009u;
                        float real = (float)pixels[y * WIDTH + x] / 255;
                        double large = (double)pixels[y * WIDTH + x] / 255;
                        int real32 = all[i].format == MDM_PIXEL_GREY_F32 || all[i].format == MDM_PIXEL_RGB_F32;
                        /* In two's complement the least number has the highest bit alone. */
                        if (all[i].format == MDM_PIXEL_GREY_I16 || all[i].format == MDM_PIXEL_RGB_I16) wide ^= 0x8000;
                        if (all[i].format == MDM_PIXEL_GREY_I32 || all[i].format == MDM_PIXEL_RGB_I32) whole ^= 0x80000000u;
                        if (bytes == 1) buffer[at] = pixels[y * WIDTH + x];
                        if (bytes == 2) memcpy(buffer + at, &wide, 2);
                        if (bytes == 4 && real32) memcpy(buffer + at, &real, 4);
                        if (bytes == 4 && !real32) memcpy(buffer + at, &whole, 4);
                        if (bytes == 8) memcpy(buffer + at, &large, 8);
                    }
                }
            }
            mdm_image image = MDM_IMAGE_INIT;
            image.pixels = buffer + 1;
            image.pixels_size = size;
            image.width = WIDTH;
            image.height = HEIGHT;
            image.row_stride = row;
            image.plane_stride = plane;
            image.format = all[i].format;
            image.layout = planar ? MDM_LAYOUT_PLANAR : MDM_LAYOUT_INTERLEAVED;
            unsigned char labels[PIXELS];
            mdm_result result = labels_result(labels, sizeof labels);
            OK(mdm_segmenter_run(segmenter, &image, &result, NULL, NULL, &error));
            int different = 0;
            for (size_t p = 0; p < PIXELS; p++) different += labels[p] != expected[p];
            CHECK(different <= 3);
            image.pixels_size--;
            FAILS(MDM_ERROR_IMAGE, "bytes", mdm_segmenter_run(segmenter, &image, &result, NULL, NULL, &error));
            free(buffer);
        }
    }
}

static void wrong_images(mdm_segmenter *segmenter) {
    unsigned char labels[PIXELS];
    mdm_result result = labels_result(labels, sizeof labels);
    mdm_image image;
#define WRONG_IMAGE(status, member, value, words)                                                      \
    do {                                                                                               \
        image = grey_image(pixels, WIDTH, HEIGHT);                                                     \
        image.member = value;                                                                          \
        FAILS(status, words, mdm_segmenter_run(segmenter, &image, &result, NULL, NULL, &error));       \
    } while (0)
    WRONG_IMAGE(MDM_ERROR_INVALID_ARGUMENT, struct_size, 8, "struct_size");
    WRONG_IMAGE(MDM_ERROR_INVALID_ARGUMENT, pixels, NULL, "NULL");
    WRONG_IMAGE(MDM_ERROR_INVALID_ARGUMENT, pixels_size, (size_t)-1, "memory");
    WRONG_IMAGE(MDM_ERROR_IMAGE, pixels_size, 7, "bytes");
    WRONG_IMAGE(MDM_ERROR_IMAGE, width, 0, "nothing");
    WRONG_IMAGE(MDM_ERROR_IMAGE, height, 0, "nothing");
    WRONG_IMAGE(MDM_ERROR_IMAGE, height, 0xffffffff, "pixels");
    WRONG_IMAGE(MDM_ERROR_IMAGE, row_stride, 3, "stride");
    WRONG_IMAGE(MDM_ERROR_IMAGE, row_stride, (size_t)-1, "pixels");
    WRONG_IMAGE(MDM_ERROR_INVALID_ARGUMENT, plane_stride, 3, "plane_stride");
    WRONG_IMAGE(MDM_ERROR_INVALID_ARGUMENT, format, 0, "format");
    WRONG_IMAGE(MDM_ERROR_INVALID_ARGUMENT, format, 77, "format");
    WRONG_IMAGE(MDM_ERROR_INVALID_ARGUMENT, layout, 2, "layout");
    WRONG_IMAGE(MDM_ERROR_INVALID_ARGUMENT, microns_per_pixel, -3, "microns_per_pixel");
    WRONG_IMAGE(MDM_ERROR_INVALID_ARGUMENT, microns_per_pixel, 1e9, "micrometres");
    float nan[4] = {0, 0, 0.0f / 0.0f, 0};
    image = grey_image((unsigned char *)nan, 2, 2);
    image.format = MDM_PIXEL_GREY_F32;
    image.pixels_size = sizeof nan;
    FAILS(MDM_ERROR_IMAGE, "row 1, column 0", mdm_segmenter_run(segmenter, &image, &result, NULL, NULL, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "mdm_image is NULL", mdm_segmenter_run(segmenter, NULL, &result, NULL, NULL, &error));

    image = grey_image(pixels, WIDTH, HEIGHT);
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "mdm_result is NULL", mdm_segmenter_run(segmenter, &image, NULL, NULL, NULL, &error));
#define WRONG_RESULT(status, member, value, words)                                                     \
    do {                                                                                               \
        result = labels_result(labels, sizeof labels);                                                 \
        result.member = value;                                                                         \
        FAILS(status, words, mdm_segmenter_run(segmenter, &image, &result, NULL, NULL, &error));       \
    } while (0)
    float values[4];
    WRONG_RESULT(MDM_ERROR_INVALID_ARGUMENT, labels, NULL, "NULL");
    WRONG_RESULT(MDM_ERROR_BUFFER_TOO_SMALL, labels_size, PIXELS - 1, "3500");
    WRONG_RESULT(MDM_ERROR_BUFFER_TOO_SMALL, label_type, MDM_LABEL_U16, "7000");
    WRONG_RESULT(MDM_ERROR_INVALID_ARGUMENT, label_type, 2, "label_type");
    WRONG_RESULT(MDM_ERROR_INVALID_ARGUMENT, labels_row_stride, 1, "stride");
    WRONG_RESULT(MDM_ERROR_BUFFER_TOO_SMALL, labels_row_stride, WIDTH + 1, "labels");
    WRONG_RESULT(MDM_ERROR_INVALID_ARGUMENT, labels_row_stride, (size_t)-1, "stride");
    WRONG_RESULT(MDM_ERROR_INVALID_ARGUMENT, reserved, 1, "reserved");
    WRONG_RESULT(MDM_ERROR_INVALID_ARGUMENT, probabilities, values, "outputs");
    WRONG_RESULT(MDM_ERROR_INVALID_ARGUMENT, uncertainty, values, "outputs");
    WRONG_RESULT(MDM_ERROR_INVALID_ARGUMENT, labels, pixels + 9, "overlaps the image");
    mdm_report report = MDM_REPORT_INIT;
    result = labels_result(labels, sizeof labels);
    report.struct_size = 0;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "mdm_report", mdm_segmenter_run(segmenter, &image, &result, NULL, &report, &error));
    mdm_run run = MDM_RUN_INIT;
    run.cancel = (mdm_cancel *)(void *)model;
    FAILS(MDM_ERROR_INVALID_HANDLE, "cancel token", mdm_segmenter_run(segmenter, &image, &result, &run, NULL, &error));
    mdm_result_size size = MDM_RESULT_SIZE_INIT;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "label_type", mdm_segmenter_result_size(segmenter, 1, 1, 9, &size, &error));
    FAILS(MDM_ERROR_INVALID_HANDLE, "NULL", mdm_segmenter_result_size(NULL, 1, 1, 0, &size, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "NULL", mdm_segmenter_result_size(segmenter, 1, 1, 0, NULL, &error));
}

typedef struct {
    const unsigned char *image;
    uint32_t width, height, next_row, reads, fail_at;
    mdm_status with;
    unsigned char *labels;
    float *probabilities, *uncertainty;
    mdm_segmenter *own;
} stream;

static mdm_status read_region(void *user_data, const mdm_region *region) {
    stream *s = user_data;
    CHECK(region->x + region->width <= s->width && region->y + region->height <= s->height);
    CHECK(region->struct_size == sizeof *region && region->level == 0 && region->downsample == 1);
    for (uint32_t y = 0; y < region->height; y++) {
        memcpy((unsigned char *)region->pixels + y * region->row_stride,
               s->image + (size_t)(region->y + y) * s->width + region->x, region->width);
    }
    return ++s->reads == s->fail_at ? s->with : MDM_OK;
}

static mdm_status write_band(void *user_data, const mdm_band *band) {
    stream *s = user_data;
    CHECK(band->struct_size == sizeof *band && band->y == s->next_row && band->width == s->width && band->classes == 3);
    size_t start = (size_t)band->y * band->width, count = (size_t)band->height * band->width;
    for (size_t i = 0; i < count; i++) s->labels[start + i] = (unsigned char)((const uint16_t *)band->labels)[i];
    memcpy(s->probabilities + start * 3, band->probabilities, count * 12);
    memcpy(s->uncertainty + start, band->uncertainty, count * 4);
    s->next_row += band->height;
    /* A segmenter is not to be used by its own callbacks. */
    mdm_sink sink = MDM_SINK_INIT;
    mdm_source source = MDM_SOURCE_INIT;
    sink.write = write_band;
    source.read = read_region;
    source.width = source.height = 9;
    source.format = MDM_PIXEL_GREY8;
    FAILS(MDM_ERROR_BUSY, "in use", mdm_segmenter_run_source(s->own, &source, &sink, NULL, NULL, &error));
    return s->fail_at == 0xffff ? s->with : MDM_OK;
}

static void segmentation(void) {
    mdm_segmenter *segmenter = NULL, *plain = NULL;
    mdm_segment_options options = MDM_SEGMENT_OPTIONS_INIT;
    options.outputs = MDM_OUTPUT_PROBABILITIES | MDM_OUTPUT_UNCERTAINTY;
    OK(mdm_segmenter_new(model, device, &options, &segmenter, &error));
    OK(mdm_segmenter_new(model, device, NULL, &plain, &error));
    mdm_result_size size = MDM_RESULT_SIZE_INIT;
    OK(mdm_segmenter_result_size(segmenter, WIDTH, HEIGHT, MDM_LABEL_U16, &size, &error));
    CHECK(size.labels == PIXELS * 2 && size.probabilities == PIXELS * 12 && size.uncertainty == PIXELS * 4);
    CHECK(size.width == WIDTH && size.height == HEIGHT && size.classes == 3);
    unsigned char *labels = malloc(PIXELS), *again = malloc(PIXELS);
    float *probabilities = malloc(PIXELS * 12), *uncertainty = malloc(PIXELS * 4);
    float *probabilities2 = malloc(PIXELS * 12), *uncertainty2 = malloc(PIXELS * 4);
    CHECK(labels && again && probabilities && uncertainty && probabilities2 && uncertainty2);

    mdm_image image = grey_image(pixels, WIDTH, HEIGHT);
    mdm_result result = labels_result(labels, PIXELS);
    result.probabilities = probabilities;
    result.probabilities_size = PIXELS * 12;
    result.uncertainty = uncertainty;
    result.uncertainty_size = PIXELS * 4;
    watched state = {0, -1, 0};
    mdm_run run = MDM_RUN_INIT;
    run.progress = watch;
    run.user_data = &state;
    mdm_report report = MDM_REPORT_INIT;
    OK(mdm_segmenter_run(segmenter, &image, &result, &run, &report, &error));
    CHECK(state.last == 1 && state.calls >= 2);
    CHECK(report.windows + 1 == (uint64_t)state.calls && report.scale == 1 && report.scaling == MDM_SCALING_IMAGE_UNKNOWN);
    CHECK(report.scaled_width == WIDTH && report.scaled_height == HEIGHT && report.seconds > 0 && report.level == 0);
    int seen[3] = {0};
    for (size_t i = 0; i < PIXELS; i++) {
        CHECK(labels[i] < 3 && uncertainty[i] > -1e-3f);
        seen[labels[i]] = 1;
        float sum = probabilities[3 * i] + probabilities[3 * i + 1] + probabilities[3 * i + 2];
        CHECK(sum > 0.999f && sum < 1.001f);
        for (int c = 0; c < 3; c++) CHECK(probabilities[3 * i + (size_t)c] <= probabilities[3 * i + labels[i]]);
    }
    CHECK(seen[0] + seen[1] + seen[2] >= 2);

    /* Wide labels with gaps, which stay untouched. */
    size_t stride = WIDTH * 2 + 3;
    unsigned char *wide = malloc(HEIGHT * stride + 1);
    CHECK(wide != NULL);
    memset(wide, 0xee, HEIGHT * stride + 1);
    mdm_result strided = labels_result(wide + 1, HEIGHT * stride - 3);
    strided.label_type = MDM_LABEL_U16;
    strided.labels_row_stride = stride;
    OK(mdm_segmenter_run(plain, &image, &strided, NULL, NULL, &error));
    for (size_t y = 0; y < HEIGHT; y++) {
        for (size_t x = 0; x < WIDTH; x++) {
            uint16_t label;
            memcpy(&label, wide + 1 + y * stride + 2 * x, 2);
            CHECK(label == labels[y * WIDTH + x]);
        }
        CHECK(y + 1 == HEIGHT || wide[1 + y * stride + 2 * WIDTH] == 0xee);
    }
    free(wide);
    result.uncertainty = probabilities + 5;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "overlaps probabilities", mdm_segmenter_run(segmenter, &image, &result, NULL, NULL, &error));
    result.uncertainty = uncertainty;
    result.uncertainty_size--;
    FAILS(MDM_ERROR_BUFFER_TOO_SMALL, "uncertainty", mdm_segmenter_run(segmenter, &image, &result, NULL, NULL, &error));

    /* Stopped by progress, at its first, second and last report. */
    result.uncertainty_size++;
    const int stops[] = {0, 1, (int)report.windows};
    for (int i = 0; i < 3; i++) {
        state = (watched){0, stops[i], 0};
        FAILS(MDM_ERROR_CANCELLED, "cancelled", mdm_segmenter_run(segmenter, &image, &result, &run, NULL, &error));
    }
    /* Stopped before it begins. */
    mdm_run cancelled = MDM_RUN_INIT;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "NULL", mdm_cancel_new(NULL, &error));
    OK(mdm_cancel_new(&cancelled.cancel, &error));
    CHECK(!mdm_cancel_is_raised(cancelled.cancel) && !mdm_cancel_is_raised(NULL));
    OK(mdm_cancel_raise(cancelled.cancel, &error));
    CHECK(mdm_cancel_is_raised(cancelled.cancel));
    FAILS(MDM_ERROR_INVALID_HANDLE, "NULL", mdm_cancel_raise(NULL, &error));
    FAILS(MDM_ERROR_CANCELLED, "cancelled", mdm_segmenter_run(segmenter, &image, &result, &cancelled, NULL, &error));
    mdm_cancel_free(cancelled.cancel);
    mdm_cancel_free(cancelled.cancel);
    mdm_cancel_free(NULL);

    /* The same by callbacks, in tiles that do not divide the image. */
    stream s = {pixels, WIDTH, HEIGHT, 0, 0, 0, MDM_OK, again, probabilities2, uncertainty2, segmenter};
    mdm_source source = MDM_SOURCE_INIT;
    source.read = read_region;
    source.user_data = &s;
    source.width = WIDTH;
    source.height = HEIGHT;
    source.format = MDM_PIXEL_GREY8;
    source.tile_width = 33;
    source.tile_height = 17;
    mdm_sink sink = MDM_SINK_INIT;
    sink.write = write_band;
    sink.user_data = &s;
    sink.label_type = MDM_LABEL_U16;
    OK(mdm_segmenter_source_size(segmenter, &source, MDM_LABEL_U8, &size, &error));
    CHECK(size.labels == PIXELS && size.level == 0);
    OK(mdm_segmenter_run_source(segmenter, &source, &sink, NULL, &report, &error));
    CHECK(s.next_row == HEIGHT && s.reads == 9);
    CHECK(memcmp(labels, again, PIXELS) == 0 && memcmp(probabilities, probabilities2, PIXELS * 12) == 0);
    CHECK(memcmp(uncertainty, uncertainty2, PIXELS * 4) == 0);
    for (uint32_t at = 1; at < 10; at += 4) {
        s.next_row = s.reads = 0;
        s.fail_at = at;
        s.with = 77;
        FAILS(MDM_ERROR_CALLBACK, "read callback returned 77", mdm_segmenter_run_source(segmenter, &source, &sink, NULL, NULL, &error));
        s.next_row = s.reads = 0;
        s.with = MDM_ERROR_CANCELLED;
        FAILS(MDM_ERROR_CANCELLED, "", mdm_segmenter_run_source(segmenter, &source, &sink, NULL, NULL, &error));
    }
    s.next_row = s.reads = 0;
    s.fail_at = 0xffff;
    s.with = -5;
    FAILS(MDM_ERROR_CALLBACK, "write callback returned -5", mdm_segmenter_run_source(segmenter, &source, &sink, NULL, NULL, &error));

    source.read = NULL;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "read", mdm_segmenter_run_source(segmenter, &source, &sink, NULL, NULL, &error));
    source.read = read_region;
    source.width = 0;
    FAILS(MDM_ERROR_IMAGE, "nothing", mdm_segmenter_run_source(segmenter, &source, &sink, NULL, NULL, &error));
    source.width = WIDTH;
    sink.write = NULL;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "write", mdm_segmenter_run_source(segmenter, &source, &sink, NULL, NULL, &error));
    sink.write = write_band;
    sink.label_type = 3;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "label_type", mdm_segmenter_run_source(segmenter, &source, &sink, NULL, NULL, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "NULL", mdm_segmenter_run_source(segmenter, NULL, &sink, NULL, NULL, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "NULL", mdm_segmenter_run_source(segmenter, &source, NULL, NULL, NULL, &error));

    /* The model has 0.5 micrometres a pixel: of 0.125, 0.25, 0.5 and 1 the third fits. */
    const mdm_level levels[] = {{400, 200, 1}, {200, 100, 2}, {100, 50, 4}, {50, 25, 8}};
    source.width = 400;
    source.height = 200;
    source.levels = levels;
    source.level_count = 4;
    source.microns_per_pixel = 0.125;
    OK(mdm_segmenter_source_size(segmenter, &source, MDM_LABEL_U8, &size, &error));
    CHECK(size.level == 2 && size.width == 100 && size.height == 50);
    source.microns_per_pixel = 0;
    OK(mdm_segmenter_source_size(segmenter, &source, MDM_LABEL_U8, &size, &error));
    CHECK(size.level == 0 && size.width == 400);
    source.level_count = 0;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "level_count", mdm_segmenter_source_size(segmenter, &source, 0, &size, &error));
    source.level_count = 4;
    source.width = 399;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "level 0", mdm_segmenter_source_size(segmenter, &source, 0, &size, &error));

    wrong_images(plain);
    formats(plain, labels);
    mdm_segmenter_free(plain);
    mdm_segmenter_free(segmenter);
    free(labels);
    free(again);
    free(probabilities);
    free(uncertainty);
    free(probabilities2);
    free(uncertainty2);
}

static mdm_status read_level(void *user_data, const mdm_region *region) {
    int *reads = user_data;
    CHECK(region->level == 1 && region->downsample == 2 && region->plane_stride > 0);
    for (int plane = 0; plane < 3; plane++) {
        for (uint32_t y = 0; y < region->height; y++) {
            unsigned char *row = (unsigned char *)region->pixels + (size_t)plane * region->plane_stride + y * region->row_stride;
            memset(row, plane * 20, region->width);
        }
    }
    (*reads)++;
    return MDM_OK;
}

static mdm_status count_rows(void *user_data, const mdm_band *band) {
    *(uint32_t *)user_data += band->height;
    return band->width == 60 ? MDM_OK : 1;
}

/* The sanitizers report allocations that fail, and end the program. */
#if !defined(ADDRESS_SANITIZER) && !defined(VALGRIND)
static void more_than_memory_has(void) {
    mdm_segmenter *segmenter = NULL;
    OK(mdm_segmenter_new(model, device, NULL, &segmenter, &error));
    stream s = {pixels, WIDTH, HEIGHT, 0, 0, 0, MDM_OK, NULL, NULL, NULL, segmenter};
    mdm_source source = MDM_SOURCE_INIT;
    source.read = read_region;
    source.user_data = &s;
    source.width = source.height = source.tile_height = 1u << 30;
    source.format = MDM_PIXEL_RGBA16;
    mdm_sink sink = MDM_SINK_INIT;
    sink.write = write_band;
    sink.user_data = &s;
    FAILS(MDM_ERROR_OUT_OF_MEMORY, "memory", mdm_segmenter_run_source(segmenter, &source, &sink, NULL, NULL, &error));
    /* It still works. */
    unsigned char labels[PIXELS];
    mdm_image image = grey_image(pixels, WIDTH, HEIGHT);
    mdm_result result = labels_result(labels, sizeof labels);
    OK(mdm_segmenter_run(segmenter, &image, &result, NULL, NULL, &error));
    mdm_segmenter_free(segmenter);
}
#else
static void more_than_memory_has(void) {}
#endif

/* An option's pixel size counts for level 0, whichever level is read. */
static void levels_and_planes(void) {
    mdm_segment_options options = MDM_SEGMENT_OPTIONS_INIT;
    options.microns_per_pixel = 0.25;
    mdm_segmenter *segmenter = NULL;
    OK(mdm_segmenter_new(model, device, &options, &segmenter, &error));
    const mdm_level levels[] = {{120, 80, 1}, {60, 40, 2}};
    int reads = 0;
    uint32_t rows = 0;
    mdm_source source = MDM_SOURCE_INIT;
    source.read = read_level;
    source.user_data = &reads;
    source.width = 120;
    source.height = 80;
    source.format = MDM_PIXEL_RGB8;
    source.layout = MDM_LAYOUT_PLANAR;
    source.levels = levels;
    source.level_count = 2;
    mdm_sink sink = MDM_SINK_INIT;
    sink.write = count_rows;
    sink.user_data = &rows;
    mdm_report report = MDM_REPORT_INIT;
    OK(mdm_segmenter_run_source(segmenter, &source, &sink, NULL, &report, &error));
    CHECK(rows == 40 && reads == 1 && report.level == 1 && report.scaling == MDM_SCALING_CLOSE && report.scale == 1);
    mdm_segmenter_free(segmenter);
}

typedef struct {
    uint32_t windows, channels;
    mdm_status status;
    const mdm_window *kept;
    double sum;
} visited;

static mdm_status visit(void *user_data, const mdm_window *window) {
    visited *v = user_data;
    mdm_window_info info = MDM_WINDOW_INFO_INIT;
    OK(mdm_window_get_info(window, &info, &error));
    CHECK(info.width == 32 && info.height == 32 && info.channels == v->channels && info.maps == 2);
    mdm_map map = MDM_MAP_INIT;
    OK(mdm_window_map(window, 1, &map, &error));
    CHECK(map.timestep == 250 && map.block == 0 && map.data != NULL);
    for (size_t i = 0; i < (size_t)map.height * map.width * map.channels; i++) v->sum += (double)map.data[i];
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "no map 2", mdm_window_map(window, 2, &map, &error));
    float *values = malloc(4 * v->channels);
    CHECK(values != NULL);
    OK(mdm_window_pixel(window, 31, 31, values, 4 * v->channels, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "not in", mdm_window_pixel(window, 32, 0, values, 4 * v->channels, &error));
    FAILS(MDM_ERROR_BUFFER_TOO_SMALL, "bytes", mdm_window_pixel(window, 0, 0, values, 4 * v->channels - 1, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "NULL", mdm_window_pixel(window, 0, 0, NULL, 4, &error));
    free(values);
    v->windows++;
    v->kept = window;
    return v->status;
}

static void features(void) {
    mdm_features *extractor = NULL;
    mdm_feature_options options = MDM_FEATURE_OPTIONS_INIT;
    const uint32_t timesteps[] = {50, 250}, blocks[] = {0}, beyond[] = {1, 99};
    options.timesteps = timesteps;
    options.timestep_count = 2;
    options.blocks = blocks;
    options.block_count = 1;
    options.normalise = MDM_NORMALISE_YES;
    OK(mdm_features_new(model, device, &options, &extractor, &error));
    mdm_features_info info = MDM_FEATURES_INFO_INIT;
    OK(mdm_features_get_info(extractor, &info, &error));
    CHECK(info.maps == 2 && info.window == 32 && info.channels == 64);
    visited v = {0, info.channels, MDM_OK, NULL, 0};
    mdm_image image = grey_image(pixels, WIDTH, HEIGHT);
    OK(mdm_features_run(extractor, &image, visit, &v, NULL, &error));
    CHECK(v.windows == 6);
    mdm_window_info window = MDM_WINDOW_INFO_INIT;
    mdm_map map = MDM_MAP_INIT;
    float value = 0;
    FAILS(MDM_ERROR_INVALID_HANDLE, "window", mdm_window_get_info(v.kept, &window, &error));
    FAILS(MDM_ERROR_INVALID_HANDLE, "window", mdm_window_map(v.kept, 0, &map, &error));
    FAILS(MDM_ERROR_INVALID_HANDLE, "window", mdm_window_pixel(v.kept, 0, 0, &value, 4, &error));
    double sum = v.sum;
    stream s = {pixels, WIDTH, HEIGHT, 0, 0, 0, MDM_OK, NULL, NULL, NULL, NULL};
    mdm_source source = MDM_SOURCE_INIT;
    source.read = read_region;
    source.user_data = &s;
    source.width = WIDTH;
    source.height = HEIGHT;
    source.format = MDM_PIXEL_GREY8;
    v.sum = 0;
    OK(mdm_features_run_source(extractor, &source, visit, &v, NULL, &error));
    CHECK(v.windows == 12 && v.sum == sum);
    v.status = 5;
    FAILS(MDM_ERROR_CALLBACK, "visit callback returned 5", mdm_features_run(extractor, &image, visit, &v, NULL, &error));
    v.status = MDM_ERROR_CANCELLED;
    FAILS(MDM_ERROR_CANCELLED, "", mdm_features_run(extractor, &image, visit, &v, NULL, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "visit", mdm_features_run(extractor, &image, NULL, NULL, NULL, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "visit", mdm_features_run_source(extractor, &source, NULL, NULL, NULL, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "NULL", mdm_features_run(extractor, NULL, visit, &v, NULL, &error));
    mdm_features_free(extractor);
    mdm_features_free(extractor);
    mdm_features_free(NULL);
    FAILS(MDM_ERROR_INVALID_HANDLE, "freed", mdm_features_get_info(extractor, &info, &error));
    FAILS(MDM_ERROR_INVALID_HANDLE, "freed", mdm_features_run(extractor, &image, visit, &v, NULL, &error));

    options.blocks = beyond;
    options.block_count = 2;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "block 99", mdm_features_new(model, device, &options, &extractor, &error));
    options.block_count = 0;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "blocks", mdm_features_new(model, device, &options, &extractor, &error));
    options.blocks = NULL;
    options.normalise = 3;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "normalise", mdm_features_new(model, device, &options, &extractor, &error));
    options.normalise = 0;
    options.reserved = 1;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "reserved", mdm_features_new(model, device, &options, &extractor, &error));
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "NULL", mdm_features_new(model, device, NULL, NULL, &error));
}

typedef struct {
    const uint16_t *values;
    int reads;
} twelve_bits;

static mdm_status read_twelve_bits(void *user_data, const mdm_region *region) {
    twelve_bits *image = user_data;
    image->reads++;
    for (uint32_t y = 0; y < region->height; y++) {
        const uint16_t *row = image->values + (region->y + y) * WIDTH + region->x;
        memcpy((unsigned char *)region->pixels + y * region->row_stride, row, region->width * 2);
    }
    return MDM_OK;
}

static mdm_status keep_labels(void *user_data, const mdm_band *band) {
    memcpy((unsigned char *)user_data + (size_t)band->y * WIDTH, band->labels, (size_t)band->height * WIDTH);
    return MDM_OK;
}

static int labels_apart(const unsigned char *a, const unsigned char *b) {
    int different = 0;
    for (size_t p = 0; p < PIXELS; p++) different += a[p] != b[p];
    return different;
}

/* The picture as a camera of 12 bits stores it, with and without an offset. */
static void ranges(void) {
    static unsigned char expected[PIXELS], labels[PIXELS];
    static uint16_t values[PIXELS];
    mdm_segmenter *segmenter = NULL;
    OK(mdm_segmenter_new(model, device, NULL, &segmenter, &error));
    mdm_image image = grey_image(pixels, WIDTH, HEIGHT);
    mdm_result result = labels_result(expected, sizeof expected);
    mdm_report report = MDM_REPORT_INIT;
    OK(mdm_segmenter_run(segmenter, &image, &result, NULL, &report, &error));
    CHECK(report.range_low == 0 && report.range_high == 255 && report.intensity_warnings == 0);
    CHECK(report.values_low >= 40 && report.values_high < 230);
    for (size_t p = 0; p < PIXELS; p++) values[p] = (uint16_t)(pixels[p] * 4095 / 255);

    result.labels = labels;
    image.pixels = values;
    image.pixels_size = sizeof values;
    image.format = MDM_PIXEL_GREY16;
    OK(mdm_segmenter_run(segmenter, &image, &result, NULL, &report, &error));
    CHECK(report.intensity_warnings == MDM_INTENSITIES_NARROW && report.values_high < 4096);
    image.range_high = 4095;
    OK(mdm_segmenter_run(segmenter, &image, &result, NULL, &report, &error));
    CHECK(report.intensity_warnings == 0 && report.range_high == 4095 && labels_apart(labels, expected) <= 35);
    image.range_low = 4095;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "range", mdm_segmenter_run(segmenter, &image, &result, NULL, NULL, &error));
    mdm_segmenter_free(segmenter);

    mdm_segment_options options = MDM_SEGMENT_OPTIONS_INIT;
    options.range = MDM_RANGE_FIXED;
    options.range_low = 32768;
    options.range_high = 36863;
    OK(mdm_segmenter_new(model, device, &options, &segmenter, &error));
    image.range_low = image.range_high = 0;
    OK(mdm_segmenter_run(segmenter, &image, &result, NULL, &report, &error));
    CHECK(report.intensity_warnings == MDM_INTENSITIES_OUTSIDE);
    for (size_t p = 0; p < PIXELS; p++) values[p] = (uint16_t)(values[p] + 32768);
    OK(mdm_segmenter_run(segmenter, &image, &result, NULL, &report, &error));
    CHECK(report.intensity_warnings == 0 && report.range_low == 32768 && labels_apart(labels, expected) <= 35);
    mdm_segmenter_free(segmenter);

    /* Percentiles of a source need a second look at it. */
    mdm_segment_options_init(&options, sizeof options);
    options.range = MDM_RANGE_PERCENTILE;
    OK(mdm_segmenter_new(model, device, &options, &segmenter, &error));
    result.labels = expected;
    OK(mdm_segmenter_run(segmenter, &image, &result, NULL, &report, &error));
    CHECK(report.range_low > 32768 && report.range_high < 36863);
    twelve_bits camera = {values, 0};
    mdm_source source = MDM_SOURCE_INIT;
    source.read = read_twelve_bits;
    source.user_data = &camera;
    source.width = WIDTH;
    source.height = HEIGHT;
    source.tile_height = 20;
    source.format = MDM_PIXEL_GREY16;
    mdm_sink sink = MDM_SINK_INIT;
    sink.write = keep_labels;
    sink.user_data = labels;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "only once", mdm_segmenter_run_source(segmenter, &source, &sink, NULL, NULL, &error));
    CHECK(camera.reads == 0);
    source.rereadable = 2;
    FAILS(MDM_ERROR_INVALID_ARGUMENT, "rereadable", mdm_segmenter_run_source(segmenter, &source, &sink, NULL, NULL, &error));
    source.rereadable = 1;
    mdm_report streamed = MDM_REPORT_INIT;
    OK(mdm_segmenter_run_source(segmenter, &source, &sink, NULL, &streamed, &error));
    CHECK(camera.reads == 6 && labels_apart(labels, expected) == 0);
    CHECK(streamed.range_low == report.range_low && streamed.range_high == report.range_high);
    mdm_segmenter_free(segmenter);

    mdm_model_info info = MDM_MODEL_INFO_INIT;
    OK(mdm_model_get_info(model, &info, &error));
    CHECK(info.range == MDM_RANGE_DECLARED && info.range_low == 0 && info.seen_high == 0);
}

int main(int count, char **arguments) {
    CHECK(count == 2);
    uint64_t state = 1;
    for (size_t y = 0; y < HEIGHT; y++) {
        for (size_t x = 0; x < WIDTH; x++) {
            pixels[y * WIDTH + x] = (unsigned char)(((x / 9 + y / 7) % 2 ? 190 : 40) + random32(&state) % 40);
        }
    }
    versions_and_errors(arguments[1]);
    log_messages();
    devices();
    struct_sizes();
    models(arguments[1]);
    segmenter_options();
    segmentation();
    more_than_memory_has();
    levels_and_planes();
    ranges();
    features();
    mdm_model_free(model);
    mdm_device_free(device);
    CHECK(mdm_object_count() == 0);
    return 0;
}
