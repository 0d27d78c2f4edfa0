/* Calls with random arguments, each of which ends with a status. */
#ifndef CALLS_H
#define CALLS_H

#include "check.h"

enum { SLOTS = 8, LARGEST = 48 };

/* As many random bytes as are asked for, up to 4: whoever includes this says where they come from. */
static uint32_t draw(int bytes);

static void *handles[SLOTS], **made_ever;
static size_t made_count;
static unsigned char image_bytes[LARGEST * LARGEST * 16], labels[LARGEST * LARGEST * 2];
static float probabilities[LARGEST * LARGEST * 4], uncertainty[LARGEST * LARGEST];

static uint32_t below(uint32_t end) { return draw(end <= 256 ? 1 : 4) % end; }

/* Mostly a handle of any kind that was given out once, sometimes nonsense. */
static void *handle(void) {
    switch (below(12)) {
        case 0: return NULL;
        case 1: return (void *)(uintptr_t)draw(4);
        case 2: return image_bytes;
        default: return handles[below(SLOTS)];
    }
}

static void keep(void *made) {
    if (made == NULL) return;
    handles[below(SLOTS)] = made;
    if (made_count % 64 == 0) made_ever = realloc(made_ever, (made_count + 64) * sizeof *made_ever);
    CHECK(made_ever != NULL);
    made_ever[made_count++] = made;
}

static void free_any(void *any) {
    mdm_segmenter_free(any);
    mdm_features_free(any);
    mdm_cancel_free(any);
    mdm_error_free(any);
    mdm_device_list_free(any);
    if (below(3) == 0) {
        mdm_model_free(any);
        mdm_device_free(any);
    }
}

/* Mostly fine, sometimes anything. */
static uint32_t number(uint32_t end) { return below(10) ? below(end) : draw(4); }

static size_t size_of(size_t size) { return below(8) ? size : below(4) ? below((uint32_t)size) : size - 1; }

static double real(void) {
    static const double values[] = {0, 0.5, 0.25, 1, -1, 1e300, 0.0 / 0.0, 0.9};
    return values[below(8)];
}

static int32_t progress(void *user_data, const mdm_progress *now) {
    (void)user_data;
    (void)now;
    if (below(20) == 0) free_any(handle());
    return below(10) == 0;
}

static mdm_status read_region(void *user_data, const mdm_region *region) {
    (void)user_data;
    for (uint32_t y = 0; y < region->height; y++) {
        memset((unsigned char *)region->pixels + y * region->row_stride, (int)below(256), region->width);
    }
    return below(30) == 0 ? (mdm_status)draw(4) : MDM_OK;
}

static mdm_status write_band(void *user_data, const mdm_band *band) {
    (void)user_data;
    (void)band;
    return below(30) == 0 ? (mdm_status)draw(4) : MDM_OK;
}

static mdm_status visit(void *user_data, const mdm_window *window) {
    (void)user_data;
    mdm_map map = MDM_MAP_INIT;
    float value[300];
    mdm_window_map(window, number(3), &map, NULL);
    mdm_window_pixel(window, number(40), number(40), value, size_of(sizeof value), NULL);
    return below(30) == 0 ? (mdm_status)draw(4) : MDM_OK;
}

static void listen(void *user_data, mdm_log_level level, const char *message) {
    (void)user_data;
    CHECK(level <= MDM_LOG_DEBUG && message != NULL);
    if (below(50) == 0) free_any(handle());
}

static mdm_image random_image(void) {
    mdm_image image = MDM_IMAGE_INIT;
    image.pixels = below(20) ? image_bytes : NULL;
    image.width = number(LARGEST) + 1;
    image.height = number(LARGEST) + 1;
    image.pixels_size = below(10) ? sizeof image_bytes : below(sizeof image_bytes);
    image.row_stride = below(3) ? 0 : number(400);
    image.format = number(10);
    image.layout = number(2);
    image.plane_stride = image.layout && below(2) ? number(4000) : 0;
    image.microns_per_pixel = real();
    return image;
}

static mdm_source random_source(void) {
    static const mdm_level levels[] = {{40, 30, 1}, {20, 15, 2}};
    mdm_source source = MDM_SOURCE_INIT;
    source.read = below(20) ? read_region : NULL;
    source.width = 40;
    source.height = below(10) ? 30 : number(2);
    source.format = number(10);
    source.layout = number(2);
    source.microns_per_pixel = real();
    source.tile_width = number(30);
    source.tile_height = number(30);
    source.levels = below(2) ? levels : NULL;
    source.level_count = source.levels ? number(3) : 0;
    return source;
}

static mdm_sink random_sink(void) {
    mdm_sink sink = MDM_SINK_INIT;
    sink.write = below(20) ? write_band : NULL;
    sink.label_type = number(2);
    return sink;
}

static mdm_result random_result(void) {
    mdm_result result = MDM_RESULT_INIT;
    result.labels = below(10) ? labels : NULL;
    result.labels_size = below(10) ? sizeof labels : below(sizeof labels);
    result.labels_row_stride = below(3) ? 0 : number(100);
    result.label_type = number(2);
    result.probabilities = below(2) ? probabilities : NULL;
    result.probabilities_size = sizeof probabilities;
    result.uncertainty = below(2) ? uncertainty : NULL;
    result.uncertainty_size = sizeof uncertainty;
    return result;
}

static mdm_run random_run(void) {
    mdm_run run = MDM_RUN_INIT;
    run.progress = below(2) ? progress : NULL;
    run.cancel = below(6) ? NULL : handle();
    return run;
}

/* Objects to begin with, so that calls get somewhere. */
static void begin(const char *path) {
    mdm_device_options options = MDM_DEVICE_OPTIONS_INIT;
    options.threads = 1;
    mdm_device *device = NULL;
    mdm_model *model = NULL;
    mdm_segmenter *segmenter = NULL;
    mdm_features *features = NULL;
    OK(mdm_device_open("cpu", &options, &device, &error));
    OK(mdm_model_open(path, &model, &error));
    OK(mdm_segmenter_new(model, device, NULL, &segmenter, &error));
    OK(mdm_features_new(model, device, NULL, &features, &error));
    void *all[] = {device, model, segmenter, features};
    for (int i = 0; i < 4; i++) {
        keep(all[i]);
        handles[i] = all[i];
    }
}

static void call(const char *path) {
    mdm_error *error = NULL;
    mdm_error **where = below(3) ? &error : NULL;
    void *made = NULL;
    mdm_status status = MDM_OK;
    switch (below(16)) {
        case 0: {
            mdm_device_options options = MDM_DEVICE_OPTIONS_INIT;
            options.struct_size = size_of(sizeof options);
            options.threads = 1;
            options.precision = number(3);
            mdm_device *device = NULL;
            status = mdm_device_open(below(5) ? "cpu" : "nonsense", &options, &device, where);
            made = device;
            break;
        }
        case 1: {
            mdm_model *model = NULL;
            switch (below(8)) {
                case 0: status = mdm_model_open(NULL, &model, where); break;
                case 1: status = mdm_model_open("none", &model, where); break;
                case 2: status = mdm_model_open(path, NULL, where); break;
                case 3: status = mdm_model_from_memory(image_bytes, below(sizeof image_bytes), &model, where); break;
                case 4: status = mdm_model_open_heads(path, below(2) ? path : "none", &model, where); break;
                default: status = mdm_model_open(path, &model, where); break;
            }
            made = model;
            break;
        }
        case 2: case 3: {
            mdm_segment_options options = MDM_SEGMENT_OPTIONS_INIT;
            options.struct_size = size_of(sizeof options);
            options.overlap = real();
            options.batch = below(8) ? below(4) : number(4);
            options.combine = number(2);
            options.outputs = number(4);
            options.corrupt = number(3);
            options.microns_per_pixel = real();
            mdm_segmenter *segmenter = NULL;
            status = mdm_segmenter_new(handle(), handle(), below(3) ? &options : NULL, &segmenter, where);
            made = segmenter;
            break;
        }
        case 4: {
            mdm_feature_options options = MDM_FEATURE_OPTIONS_INIT;
            uint32_t values[2] = {number(60), number(3)};
            options.timesteps = below(2) ? values : NULL;
            options.timestep_count = options.timesteps ? below(3) : 0;
            options.blocks = below(2) ? values : NULL;
            options.block_count = options.blocks ? below(3) : 0;
            options.normalise = number(3);
            mdm_features *features = NULL;
            status = mdm_features_new(handle(), handle(), &options, &features, where);
            made = features;
            break;
        }
        case 5: {
            mdm_cancel *cancel = NULL;
            status = mdm_cancel_new(&cancel, where);
            made = cancel;
            break;
        }
        case 6: status = mdm_cancel_raise(handle(), where); break;
        case 7: {
            mdm_device_list *list = NULL;
            if (below(10) == 0) status = mdm_device_list_new(&list, where);
            made = list;
            break;
        }
        case 8: free_any(handle()); break;
        case 9: case 10: {
            mdm_image image = random_image();
            mdm_result result = random_result();
            mdm_run run = random_run();
            mdm_report report = MDM_REPORT_INIT;
            report.struct_size = size_of(sizeof report);
            status = mdm_segmenter_run(handle(), &image, &result, &run, below(2) ? &report : NULL, where);
            break;
        }
        case 11: {
            mdm_source source = random_source();
            mdm_sink sink = random_sink();
            mdm_run run = random_run();
            status = mdm_segmenter_run_source(handle(), &source, &sink, &run, NULL, where);
            break;
        }
        case 12: {
            mdm_image image = random_image();
            mdm_run run = random_run();
            status = mdm_features_run(handle(), &image, visit, NULL, &run, where);
            break;
        }
        case 13: {
            mdm_source source = random_source();
            mdm_run run = random_run();
            status = mdm_features_run_source(handle(), &source, below(9) ? visit : NULL, NULL, &run, where);
            break;
        }
        case 14: {
            mdm_source source = random_source();
            mdm_result_size size = MDM_RESULT_SIZE_INIT;
            size.struct_size = size_of(sizeof size);
            status = mdm_segmenter_source_size(handle(), &source, number(2), &size, where);
            mdm_segmenter_result_size(handle(), number(100), number(100), number(2), &size, NULL);
            break;
        }
        default: {
            mdm_model_info model = MDM_MODEL_INFO_INIT;
            mdm_class_info class_info = MDM_CLASS_INFO_INIT;
            mdm_block_info block = MDM_BLOCK_INFO_INIT;
            mdm_device_info device = MDM_DEVICE_INFO_INIT;
            mdm_features_info features = MDM_FEATURES_INFO_INIT;
            mdm_window_info window = MDM_WINDOW_INFO_INIT;
            mdm_map map = MDM_MAP_INIT;
            mdm_model_get_info(handle(), &model, NULL);
            mdm_model_class(handle(), number(3), &class_info, NULL);
            mdm_model_block(handle(), number(3), &block, NULL);
            mdm_model_assumption(handle(), number(3));
            mdm_device_get_info(handle(), &device, NULL);
            mdm_device_list_info(handle(), number(2), &device, NULL);
            mdm_device_list_count(handle());
            mdm_device_reason(handle());
            mdm_window_get_info(handle(), &window, NULL);
            mdm_window_map(handle(), number(3), &map, NULL);
            mdm_status_name((mdm_status)draw(4));
            mdm_check_abi(number(3), NULL);
            mdm_log_set(below(2) ? listen : NULL, number(5), NULL, NULL);
            mdm_features_get_info(handle(), &features, NULL);
            mdm_cancel_is_raised(handle());
            mdm_error_message(handle());
            mdm_error_status(handle());
            break;
        }
    }
    CHECK(status >= MDM_OK && status < MDM_ERROR_INTERNAL);
    CHECK(where == NULL || (status == MDM_OK) == (error == NULL));
    CHECK(status == MDM_OK || made == NULL);
    if (error != NULL) CHECK(mdm_error_message(error)[0] != 0);
    /* What falls out of the slots stays until the end: other slots may hold it. */
    keep(made);
    if (below(2)) mdm_error_free(error);
    else if (error) keep(error);
}

/* Frees all that calls left; nothing may remain. */
static void finish(void) {
    mdm_log_set(NULL, MDM_LOG_OFF, NULL, NULL);
    for (size_t i = 0; i < made_count; i++) {
        mdm_segmenter_free(made_ever[i]);
        mdm_features_free(made_ever[i]);
        mdm_cancel_free(made_ever[i]);
        mdm_error_free(made_ever[i]);
        mdm_device_list_free(made_ever[i]);
        mdm_model_free(made_ever[i]);
        mdm_device_free(made_ever[i]);
    }
    free(made_ever);
    made_ever = NULL;
    made_count = 0;
    memset(handles, 0, sizeof handles);
    CHECK(mdm_object_count() == 0);
}

#endif
