/*
 * A libFuzzer target: its input decides which functions of the C interface are called, and with what. fuzz/run builds and runs it.
 * MDM_FUZZ_MODEL names a small model with heads.
 */
#include "../tests/c/calls.h"
#include "input.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *model = take_input(data, size);
    begin(model);
    while (input_size > 0) call(model);
    finish();
    return 0;
}
