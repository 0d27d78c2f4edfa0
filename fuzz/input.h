/* What targets do with libFuzzer's input: the calls of tests/c/calls.h are drawn from it. Included after them. */
static const uint8_t *input;
static size_t input_size;

static uint32_t draw(int bytes) {
    uint32_t drawn = 0;
    for (; bytes > 0 && input_size > 0; bytes--, input++, input_size--) drawn = drawn << 8 | *input;
    return drawn;
}

/* Takes what calls are drawn from; the model that they use. */
static const char *take_input(const uint8_t *data, size_t size) {
    static const char *model;
    if (model == NULL) {
        model = getenv("MDM_FUZZ_MODEL");
        CHECK(model != NULL);
        uint64_t state = 1;
        for (size_t i = 0; i < sizeof image_bytes; i++) image_bytes[i] = (unsigned char)random32(&state);
    }
    input = data;
    input_size = size;
    return model;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
