// What the test programs share.
#ifndef CHECK_HPP
#define CHECK_HPP

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mdm.hpp>
#include <string>
#include <vector>

#define CHECK(condition)                                                                 \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                                \
        }                                                                                \
    } while (0)

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
