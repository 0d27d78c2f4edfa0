/*
 * A libFuzzer target: its input decides which functions of training's C interface are called, and with what. fuzz/run --training builds and
 * runs it. MDM_FUZZ_MODEL names a small model with heads. Files are written to the working directory.
 */
#include "../train/tests/c/calls.h"

static const uint8_t *input;
static size_t input_size;

static uint32_t draw(int bytes) {
    uint32_t drawn = 0;
    for (; bytes > 0 && input_size > 0; bytes--, input++, input_size--) drawn = drawn << 8 | *input;
    return drawn;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *model;
    if (model == NULL) {
        model = getenv("MDM_FUZZ_MODEL");
        CHECK(model != NULL);
        uint64_t state = 1;
        for (size_t i = 0; i < sizeof image_bytes; i++) image_bytes[i] = (unsigned char)random32(&state);
    }
    input = data;
    input_size = size;
    begin_training(model, ".");
    while (input_size > 0) {
        if (below(4)) call_training(model);
        else call(model);
    }
    finish_training();
    return 0;
}
