/* Segments a grey image. Usage: client MODEL */
#include <mdm.h>
#include <stdio.h>
#include <string.h>

enum { WIDTH = 40, HEIGHT = 33 };

int main(int count, char **arguments) {
    static unsigned char pixels[WIDTH * HEIGHT], labels[WIDTH * HEIGHT];
    mdm_error *error = NULL;
    mdm_model *model = NULL;
    mdm_device *device = NULL;
    mdm_segmenter *segmenter = NULL;
    mdm_image image = MDM_IMAGE_INIT;
    mdm_result result = MDM_RESULT_INIT;
    if (count != 2) return 2;
    memset(labels, 99, sizeof labels);
    image.pixels = pixels;
    image.pixels_size = sizeof pixels;
    image.width = WIDTH;
    image.height = HEIGHT;
    image.format = MDM_PIXEL_GREY8;
    result.labels = labels;
    result.labels_size = sizeof labels;
    if (mdm_check_abi(MDM_ABI_VERSION, &error) || mdm_model_open(arguments[1], &model, &error) ||
        mdm_device_open("cpu", NULL, &device, &error) ||
        mdm_segmenter_new(model, device, NULL, &segmenter, &error) ||
        mdm_segmenter_run(segmenter, &image, &result, NULL, NULL, &error)) {
        fprintf(stderr, "%s\n", mdm_error_message(error));
        return 1;
    }
    mdm_segmenter_free(segmenter);
    mdm_device_free(device);
    mdm_model_free(model);
    return memchr(labels, 99, sizeof labels) == NULL && mdm_object_count() == 0 ? 0 : 1;
}
