// What the test programs share.
#ifndef CHECK_HPP
#define CHECK_HPP

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mdm.hpp>
#include <string>
#include <type_traits>
#include <vector>

#define CHECK(condition)                                                                 \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                                \
        }                                                                                \
    } while (0)

// The call, which is given `error`, sets it to this status and these words.
#define FAILS(expected, words, call)                                                                       \
    do {                                                                                                   \
        call;                                                                                              \
        if (!error || error.status() != (expected) || std::strstr(error.message(), words) == nullptr) {    \
            std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, mdm::status_name(error.status()), \
                         error.message());                                                                 \
            std::exit(1);                                                                                  \
        }                                                                                                  \
    } while (0)

#define OK(call)                                                                    \
    do {                                                                            \
        call;                                                                       \
        if (error) {                                                                \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, error.message()); \
            std::exit(1);                                                           \
        }                                                                           \
    } while (0)

#if MDM_HPP_EXCEPTIONS
struct own_exception {
    int value;
};

// The call throws an mdm::exception with this status and these words.
template <class Call> void fails(mdm_status status, const char *words, Call &&call) {
    try {
        call();
    } catch (const mdm::exception &exception) {
        if (exception.status() != status || std::strstr(exception.what(), words) == nullptr) {
            std::fprintf(stderr, "%s instead of %s (%s): %s\n", mdm::status_name(exception.status()),
                         mdm::status_name(status), words, exception.what());
            std::exit(1);
        }
        return;
    }
    std::fprintf(stderr, "does not fail: %s, %s\n", mdm::status_name(status), words);
    std::exit(1);
}

// The call throws an own_exception with this value.
template <class Call> void throws(int value, Call &&call) {
    try {
        call();
    } catch (const own_exception &exception) {
        CHECK(exception.value == value);
        return;
    }
    std::fprintf(stderr, "does not throw: %d\n", value);
    std::exit(1);
}
#endif

template <class Object> inline constexpr bool moves_only =
    std::is_nothrow_move_constructible_v<Object> && std::is_nothrow_move_assignable_v<Object> &&
    std::is_nothrow_default_constructible_v<Object> && !std::is_copy_constructible_v<Object> &&
    !std::is_copy_assignable_v<Object> && sizeof(Object) == sizeof(void *);

constexpr std::uint32_t width = 70, height = 50;
constexpr std::size_t pixel_count = std::size_t{width} * height;

inline std::vector<std::uint8_t> drawn() {
    std::vector<std::uint8_t> pixels(pixel_count);
    for (std::size_t i = 0; i < pixel_count; i++) {
        const std::size_t x = i % width, y = i / width;
        pixels[i] = static_cast<std::uint8_t>(((x / 9 + y / 7) % 2 ? 190 : 40) + i * 7919 % 40);
    }
    return pixels;
}

// Reads regions of a grey image.
struct reader {
    const std::vector<std::uint8_t> &pixels;
    int reads = 0;

    void operator()(const mdm::region &region) {
        for (std::uint32_t y = 0; y < region.height; y++) {
            const auto *from = pixels.data() + std::size_t{region.y + y} * width + region.x;
            std::copy(from, from + region.width, mdm::row<std::uint8_t>(region, y));
        }
        reads++;
    }
};

#endif
