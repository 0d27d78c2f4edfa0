/*
 * A libFuzzer target: its input decides which functions of training's C interface are called, and with what. fuzz/run --training builds and
 * runs it. MDM_FUZZ_MODEL names a small model with heads. Files are written to the working directory.
 */
#include "../train/tests/c/calls.h"
#include "input.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *model = take_input(data, size);
    begin_training(model, ".");
    while (input_size > 0) {
        if (below(4)) call_training(model);
        else call(model);
    }
    finish_training();
    return 0;
}
