/* Fits heads to a bright square, finds it again, and trains a backbone for a step. Usage: client BACKBONE */
#include <mdm_train.h>
#include <stdio.h>
#include <string.h>

enum { SIDE = 48, PIXELS = SIDE * SIDE };

static unsigned char pixels[PIXELS], labels[PIXELS], found[PIXELS];

static int is_bright(int at) { return at / SIDE >= 8 && at / SIDE < 36 && at % SIDE >= 12 && at % SIDE < 40; }

static mdm_image whole_image(void) {
    mdm_image image = MDM_IMAGE_INIT;
    image.pixels = pixels;
    image.pixels_size = sizeof pixels;
    image.width = SIDE;
    image.height = SIDE;
    image.format = MDM_PIXEL_GREY8;
    return image;
}

static mdm_status read_image(void *user_data, uint64_t index, mdm_image *image) {
    (void)user_data;
    if (index != 0) return MDM_ERROR_INVALID_ARGUMENT;
    *image = whole_image();
    return MDM_OK;
}

int main(int count, char **arguments) {
    mdm_error *error = NULL;
    mdm_model *backbone = NULL, *fitted = NULL;
    mdm_device *device = NULL;
    mdm_fitter *fitter = NULL;
    mdm_segmenter *segmenter = NULL;
    mdm_trainer *trainer = NULL;
    mdm_fitter_options options = MDM_FITTER_OPTIONS_INIT;
    mdm_trainer_options recipe = MDM_TRAINER_OPTIONS_INIT;
    mdm_training_images images = MDM_TRAINING_IMAGES_INIT;
    mdm_labels drawn = MDM_LABELS_INIT;
    mdm_result result = MDM_RESULT_INIT;
    mdm_step_report step = MDM_STEP_REPORT_INIT;
    mdm_image image = whole_image();
    int at, right = 0;
    if (count != 2) return 2;
    for (at = 0; at < PIXELS; at++) {
        pixels[at] = (unsigned char)(40 + 150 * is_bright(at) + at % 7);
        labels[at] = at / SIDE % 4 == 2 ? (unsigned char)is_bright(at) : MDM_UNLABELLED;
    }
    drawn.labels = labels;
    drawn.labels_size = sizeof labels;
    drawn.width = SIDE;
    drawn.height = SIDE;
    result.labels = found;
    result.labels_size = sizeof found;
    options.classes = 2;
    options.heads = 1;
    options.min_steps = 60;
    options.batch = 64;
    options.learning_rate = 0.01;
    images.read = read_image;
    images.count = 1;
    recipe.width = 32;
    recipe.size = 32;
    recipe.batch = 1;
    if (mdm_check_abi(MDM_ABI_VERSION, &error) || mdm_train_check_abi(MDM_TRAIN_ABI_VERSION, &error) ||
        mdm_model_open(arguments[1], &backbone, &error) || mdm_device_open("cpu", NULL, &device, &error) ||
        mdm_fitter_new(backbone, device, NULL, &options, &fitter, &error) ||
        mdm_fitter_set_image(fitter, "square", &image, &error) ||
        mdm_fitter_set_labels(fitter, "square", &drawn, NULL, NULL, &error) ||
        mdm_fitter_fit(fitter, NULL, NULL, &error) || mdm_fitter_model(fitter, &fitted, &error) ||
        mdm_segmenter_new(fitted, device, NULL, &segmenter, &error) ||
        mdm_segmenter_run(segmenter, &image, &result, NULL, NULL, &error) ||
        mdm_trainer_new(device, &recipe, NULL, &images, &trainer, &error) ||
        mdm_trainer_run(trainer, 1, NULL, &step, &error)) {
        fprintf(stderr, "%s\n", mdm_error_message(error));
        return 1;
    }
    mdm_trainer_free(trainer);
    mdm_segmenter_free(segmenter);
    mdm_fitter_free(fitter);
    mdm_model_free(fitted);
    mdm_device_free(device);
    mdm_model_free(backbone);
    for (at = 0; at < PIXELS; at++) right += found[at] == is_bright(at);
    return right > PIXELS * 9 / 10 && step.step == 1 && step.loss > 0 && mdm_object_count() == 0 ? 0 : 1;
}
