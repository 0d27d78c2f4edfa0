/* Random calls of training and inference with random arguments: everything ends with a status. Usage: random FOLDER CALLS SEED */
#include "calls.h"

static uint64_t state;

static uint32_t draw(int bytes) {
    (void)bytes;
    return random32(&state);
}

int main(int count, char **arguments) {
    CHECK(count == 4);
    const char *path = in_folder(arguments[1], "mod\xc3\xa8le.safetensors");
    state = (uint64_t)atol(arguments[3]);
    for (size_t i = 0; i < sizeof image_bytes; i++) image_bytes[i] = (unsigned char)draw(1);
    begin_training(path, arguments[1]);
    for (long i = 0; i < atol(arguments[2]); i++) {
        if (below(4)) call_training(path);
        else call(path);
    }
    finish_training();
    return 0;
}
