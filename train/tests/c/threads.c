/* Fits are cancelled and their fitters freed at random moments by other threads. Usage: threads FOLDER ROUNDS */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <time.h>

#include "train.h"

static unsigned char pixels[PIXELS], labels[PIXELS];

typedef struct {
    mdm_fitter *fitter;
    mdm_cancel *cancel;
    mdm_status label_status, fit_status, tune_status;
} job;

static int32_t go_on(void *user_data, const mdm_progress *progress) {
    (void)user_data;
    (void)progress;
    return 0;
}

static void *run_job(void *data) {
    job *work = data;
    mdm_run run = MDM_RUN_INIT;
    run.cancel = work->cancel;
    run.progress = go_on;
    mdm_labels said = labels_of(labels);
    work->label_status = mdm_fitter_set_labels(work->fitter, "a", &said, &run, NULL, NULL);
    work->fit_status = mdm_fitter_fit(work->fitter, &run, NULL, NULL);
    mdm_tune_options options = MDM_TUNE_OPTIONS_INIT;
    options.steps = 3;
    options.batch = 1;
    mdm_model *tuned = NULL;
    work->tune_status = mdm_fitter_tune(work->fitter, &options, &run, NULL, &tuned, NULL);
    CHECK((work->tune_status == MDM_OK) == (tuned != NULL));
    mdm_model_free(tuned);
    return NULL;
}

static void wait_microseconds(uint32_t microseconds) {
    struct timespec time = {0, (long)microseconds * 1000};
    nanosleep(&time, NULL);
}

int main(int count, char **arguments) {
    CHECK(count == 3);
    int rounds = atoi(arguments[2]), stopped = 0;
    uint64_t state = 9;
    draw_image(pixels, labels);
    mdm_device *device = NULL;
    mdm_model *model = NULL;
    mdm_device_options threads = MDM_DEVICE_OPTIONS_INIT;
    threads.threads = 2;
    OK(mdm_device_open("cpu", &threads, &device, &error));
    OK(mdm_model_open(in_folder(arguments[1], "backbone.safetensors"), &model, &error));
    mdm_fitter_options options = quick_options();
    options.min_steps = 100;
    mdm_image image = grey_image(pixels, SIDE, SIDE);
    for (int round = 0; round < rounds; round++) {
        job work = {0};
        pthread_t thread;
        OK(mdm_fitter_new(model, device, NULL, &options, &work.fitter, &error));
        OK(mdm_fitter_set_image(work.fitter, "a", &image, &error));
        OK(mdm_cancel_new(&work.cancel, &error));
        CHECK(pthread_create(&thread, NULL, run_job, &work) == 0);
        wait_microseconds(random32(&state) % 120000);
        if (round % 2) mdm_fitter_free(work.fitter);
        else OK(mdm_cancel_raise(work.cancel, &error));
        CHECK(pthread_join(thread, NULL) == 0);
        mdm_status statuses[3] = {work.label_status, work.fit_status, work.tune_status};
        for (int i = 0; i < 3; i++) {
            mdm_status status = statuses[i];
            stopped += status == MDM_ERROR_CANCELLED;
            /* Where labels did not get there, there is nothing to fit; a fitter that was freed is none. */
            CHECK(status == MDM_OK || status == MDM_ERROR_CANCELLED ||
                  (round % 2 ? status == MDM_ERROR_INVALID_HANDLE : i > 0 && status == MDM_ERROR_INVALID_ARGUMENT));
        }
        if (round % 2 == 0) {
            /* What was cancelled still works. */
            mdm_cancel *cancel = work.cancel;
            work.cancel = NULL;
            run_job(&work);
            CHECK(work.label_status == MDM_OK && work.fit_status == MDM_OK && work.tune_status == MDM_OK);
            mdm_fitter_free(work.fitter);
            work.cancel = cancel;
        }
        mdm_cancel_free(work.cancel);
    }
    CHECK(stopped > 0);
    mdm_model_free(model);
    mdm_device_free(device);
    CHECK(mdm_object_count() == 0);
    return 0;
}
