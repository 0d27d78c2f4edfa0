/* Many threads: shared models, cancelling and freeing at random moments. Usage: threads FOLDER ROUNDS */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <time.h>

#include "check.h"

/* Valgrind runs one thread at a time, some fifty times slower. */
#ifdef VALGRIND
enum { SIDE = 40, THREADS = 3, RUNS = 1, PAIRS = 3, CHANGES = 5 };
#else
enum { SIDE = 80, THREADS = 6, RUNS = 3, PAIRS = 20, CHANGES = 100 };
#endif
enum { PIXELS = SIDE * SIDE };

static mdm_device *device;
static mdm_model *model;
static unsigned char pixels[PIXELS], expected[PIXELS];

static void wait_microseconds(uint32_t microseconds) {
    struct timespec time = {0, (long)microseconds * 1000};
    nanosleep(&time, NULL);
}

static void *own_segmenter(void *unused) {
    (void)unused;
    mdm_segmenter *segmenter = NULL;
    OK(mdm_segmenter_new(model, device, NULL, &segmenter, &error));
    for (int round = 0; round < RUNS; round++) {
        unsigned char labels[PIXELS];
        mdm_image image = grey_image(pixels, SIDE, SIDE);
        mdm_result result = labels_result(labels, sizeof labels);
        OK(mdm_segmenter_run(segmenter, &image, &result, NULL, NULL, &error));
        CHECK(memcmp(labels, expected, sizeof labels) == 0);
    }
    mdm_segmenter_free(segmenter);
    return NULL;
}

static void many_segmenters(void) {
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, own_segmenter, NULL) == 0);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
}

typedef struct {
    mdm_segmenter *segmenter;
    mdm_cancel *cancel;
    mdm_status status;
    unsigned char labels[PIXELS];
} job;

static void *run_job(void *data) {
    job *work = data;
    mdm_image image = grey_image(pixels, SIDE, SIDE);
    mdm_result result = labels_result(work->labels, sizeof work->labels);
    mdm_run run = MDM_RUN_INIT;
    run.cancel = work->cancel;
    mdm_error *error = NULL;
    work->status = mdm_segmenter_run(work->segmenter, &image, &result, &run, NULL, &error);
    CHECK(mdm_error_status(error) == work->status);
    mdm_error_free(error);
    return NULL;
}

static void cancel_at_random_moments(int rounds) {
    static job work;
    uint64_t state = 7;
    int cancelled = 0;
    OK(mdm_segmenter_new(model, device, NULL, &work.segmenter, &error));
    for (int round = 0; round < rounds; round++) {
        OK(mdm_cancel_new(&work.cancel, &error));
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, run_job, &work) == 0);
        wait_microseconds(random32(&state) % 30000);
        OK(mdm_cancel_raise(work.cancel, &error));
        if (round % 2) mdm_cancel_free(work.cancel);
        CHECK(pthread_join(thread, NULL) == 0);
        /* A token that is freed before the run looks it up is none. */
        CHECK(work.status == MDM_OK || work.status == MDM_ERROR_CANCELLED || work.status == MDM_ERROR_INVALID_HANDLE);
        if (work.status == MDM_OK) CHECK(memcmp(work.labels, expected, PIXELS) == 0);
        cancelled += work.status == MDM_ERROR_CANCELLED;
        if (!(round % 2)) mdm_cancel_free(work.cancel);
    }
    CHECK(cancelled > 0);
    /* It still works. */
    work.cancel = NULL;
    run_job(&work);
    CHECK(work.status == MDM_OK && memcmp(work.labels, expected, PIXELS) == 0);
    mdm_segmenter_free(work.segmenter);
}

typedef struct {
    mdm_features *features;
    mdm_cancel *cancel;
    mdm_status status;
    int windows;
} visit_job;

static mdm_status count_windows(void *user_data, const mdm_window *window) {
    float first = 0;
    OK(mdm_window_get_info(window, &(mdm_window_info)MDM_WINDOW_INFO_INIT, &error));
    FAILS(MDM_ERROR_BUFFER_TOO_SMALL, "bytes", mdm_window_pixel(window, 0, 0, &first, sizeof first, &error));
    ((visit_job *)user_data)->windows++;
    return MDM_OK;
}

static void *run_visit_job(void *data) {
    visit_job *work = data;
    mdm_image image = grey_image(pixels, SIDE, SIDE);
    mdm_run run = MDM_RUN_INIT;
    run.cancel = work->cancel;
    work->windows = 0;
    work->status = mdm_features_run(work->features, &image, count_windows, work, &run, NULL);
    return NULL;
}

/* The same for features: every other time by a token, else by freeing the extractor. */
static void stop_features_at_random_moments(int rounds) {
    static visit_job work;
    uint64_t state = 13;
    for (int round = 0; round < rounds; round++) {
        OK(mdm_features_new(model, device, NULL, &work.features, &error));
        OK(mdm_cancel_new(&work.cancel, &error));
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, run_visit_job, &work) == 0);
        wait_microseconds(random32(&state) % 20000);
        if (round % 2) OK(mdm_cancel_raise(work.cancel, &error));
        else mdm_features_free(work.features);
        CHECK(pthread_join(thread, NULL) == 0);
        CHECK(work.status == MDM_OK || work.status == MDM_ERROR_CANCELLED || work.status == MDM_ERROR_INVALID_HANDLE);
        CHECK(work.status != MDM_OK || work.windows > 0);
        mdm_cancel_free(work.cancel);
        mdm_features_free(work.features);
    }
}

typedef struct {
    int listening, messages;
} listener;

static void listen(void *user_data, mdm_log_level level, const char *message) {
    listener *to = user_data;
    CHECK(to->listening && level <= MDM_LOG_DEBUG && message[0] != 0);
    /* Any number of threads may be here. */
    __atomic_fetch_add(&to->messages, 1, __ATOMIC_RELAXED);
}

static int enough;

static void *fail_often(void *unused) {
    (void)unused;
    mdm_model *none = NULL;
    while (!__atomic_load_n(&enough, __ATOMIC_RELAXED)) CHECK(mdm_model_open("none", &none, NULL) == MDM_ERROR_IO);
    return NULL;
}

/* Once another callback is set, the last one is not called any more, whoever is at work. */
static void log_changes_while_others_work(void) {
    pthread_t threads[THREADS];
    int messages = 0;
    for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, fail_often, NULL) == 0);
    for (int round = 0; round < CHANGES || messages == 0; round++) {
        listener own = {1, 0};
        OK(mdm_log_set(listen, MDM_LOG_DEBUG, &own, &error));
        wait_microseconds(50);
        OK(mdm_log_set(NULL, MDM_LOG_OFF, NULL, &error));
        own.listening = 0;
        messages += own.messages;
    }
    __atomic_store_n(&enough, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
}

/* A segmenter is freed while it runs; the run ends by itself. */
static void free_at_random_moments(int rounds) {
    static job work;
    uint64_t state = 11;
    for (int round = 0; round < rounds; round++) {
        mdm_model *own_model = NULL;
        mdm_device *own_device = NULL;
        mdm_device_options options = MDM_DEVICE_OPTIONS_INIT;
        mdm_model_info info = MDM_MODEL_INFO_INIT;
        options.threads = 1 + (uint32_t)round % 2;
        OK(mdm_device_open("cpu", &options, &own_device, &error));
        OK(mdm_model_get_info(model, &info, &error));
        OK(mdm_model_open(info.path, &own_model, &error));
        OK(mdm_segmenter_new(own_model, own_device, NULL, &work.segmenter, &error));
        work.cancel = NULL;
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, run_job, &work) == 0);
        uint32_t order = random32(&state) % 6;
        for (uint32_t i = 0; i < 3; i++) {
            wait_microseconds(random32(&state) % 10000);
            switch ((order % 2 ? i : 2 - i) + order) {
                case 0: case 3: case 6: mdm_model_free(own_model); break;
                case 1: case 4: case 7: mdm_device_free(own_device); break;
                default: mdm_segmenter_free(work.segmenter); break;
            }
        }
        CHECK(pthread_join(thread, NULL) == 0);
        CHECK(work.status == MDM_OK || work.status == MDM_ERROR_CANCELLED || work.status == MDM_ERROR_INVALID_HANDLE);
        mdm_model_free(own_model);
        mdm_device_free(own_device);
        mdm_segmenter_free(work.segmenter);
    }
}

/* Two threads and one segmenter: one of them is told. */
static void one_segmenter_for_two(void) {
    static job work[2];
    int told = 0;
    OK(mdm_segmenter_new(model, device, NULL, &work[0].segmenter, &error));
    work[1].segmenter = work[0].segmenter;
    for (int round = 0; round < PAIRS; round++) {
        pthread_t threads[2];
        for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, run_job, &work[i]) == 0);
        for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
        for (int i = 0; i < 2; i++) {
            CHECK(work[i].status == MDM_OK || work[i].status == MDM_ERROR_BUSY);
            if (work[i].status == MDM_OK) CHECK(memcmp(work[i].labels, expected, PIXELS) == 0);
            told += work[i].status == MDM_ERROR_BUSY;
        }
    }
    CHECK(told > 0);
    mdm_segmenter_free(work[0].segmenter);
}

/* An error is read by another thread than the one that failed. */
static void *read_error(void *error) {
    CHECK(mdm_error_status(error) == MDM_ERROR_IO);
    CHECK(strstr(mdm_error_message(error), "none") != NULL);
    return NULL;
}

static void errors_of_other_threads(void) {
    mdm_error *error = NULL;
    mdm_model *none = NULL;
    pthread_t thread;
    CHECK(mdm_model_open("none", &none, &error) == MDM_ERROR_IO);
    CHECK(pthread_create(&thread, NULL, read_error, error) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    mdm_error_free(error);
}

static void free_own_segmenter(mdm_segmenter **segmenter) {
    mdm_segmenter_free(*segmenter);
    *segmenter = NULL;
}

static int32_t free_while_running(void *user_data, const mdm_progress *progress) {
    if (progress->windows_done == 1) free_own_segmenter(user_data);
    return 0;
}

static void freed_by_its_own_callback(void) {
    mdm_segmenter *segmenter = NULL;
    OK(mdm_segmenter_new(model, device, NULL, &segmenter, &error));
    unsigned char labels[PIXELS];
    mdm_image image = grey_image(pixels, SIDE, SIDE);
    mdm_result result = labels_result(labels, sizeof labels);
    mdm_run run = MDM_RUN_INIT;
    run.progress = free_while_running;
    run.user_data = &segmenter;
    FAILS(MDM_ERROR_CANCELLED, "cancelled", mdm_segmenter_run(segmenter, &image, &result, &run, NULL, &error));
    CHECK(segmenter == NULL);
}

int main(int count, char **arguments) {
    CHECK(count == 3);
    int rounds = atoi(arguments[2]);
    uint64_t state = 3;
    for (size_t i = 0; i < PIXELS; i++) pixels[i] = (unsigned char)random32(&state);
    mdm_device_options options = MDM_DEVICE_OPTIONS_INIT;
    options.threads = 2;
    OK(mdm_device_open("cpu", &options, &device, &error));
    OK(mdm_model_open(in_folder(arguments[1], "mod\xc3\xa8le.safetensors"), &model, &error));
    mdm_segmenter *segmenter = NULL;
    OK(mdm_segmenter_new(model, device, NULL, &segmenter, &error));
    mdm_image image = grey_image(pixels, SIDE, SIDE);
    mdm_result result = labels_result(expected, sizeof expected);
    OK(mdm_segmenter_run(segmenter, &image, &result, NULL, NULL, &error));

    many_segmenters();
    cancel_at_random_moments(rounds);
    free_at_random_moments(rounds / 4);
    stop_features_at_random_moments(rounds / 4);
    log_changes_while_others_work();
    one_segmenter_for_two();
    errors_of_other_threads();
    freed_by_its_own_callback();

    mdm_model_free(model);
    mdm_device_free(device);
    OK(mdm_segmenter_run(segmenter, &image, &result, NULL, NULL, &error));
    mdm_segmenter_free(segmenter);
    CHECK(mdm_object_count() == 0);
    return 0;
}
