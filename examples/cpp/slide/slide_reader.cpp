#include "slide_reader.hpp"

#include <cmath>
#include <cstdlib>
#include <limits>
#include <stdexcept>

slide_reader::slide_reader(const std::string &path) : slide_(openslide_open(path.c_str())) {
    if (!slide_) throw std::runtime_error(path + ": not a slide that OpenSlide knows, or no file");
    check();

    const int count = openslide_get_level_count(slide_.get());
    for (int level = 0; level < count; level++) {
        std::int64_t width = 0, height = 0;
        openslide_get_level_dimensions(slide_.get(), level, &width, &height);
        const double downsample = openslide_get_level_downsample(slide_.get(), level);
        check();
        constexpr auto most = std::numeric_limits<std::int32_t>::max();
        if (width < 1 || height < 1 || width > most || height > most) {
            throw std::runtime_error(path + ": level " + std::to_string(level) + " has an impossible size");
        }
        // Level 0 is the slide itself; others count as long as they get smaller.
        if (level > 0 && downsample < levels_.back().downsample) break;
        levels_.push_back({static_cast<std::uint32_t>(width), static_cast<std::uint32_t>(height), level ? downsample : 1.0});
    }
    if (levels_.empty()) throw std::runtime_error(path + ": has no levels");

    const char *x = property(OPENSLIDE_PROPERTY_NAME_MPP_X), *y = property(OPENSLIDE_PROPERTY_NAME_MPP_Y);
    if (x != nullptr && y != nullptr) {
        const double mean = (std::strtod(x, nullptr) + std::strtod(y, nullptr)) / 2;
        if (mean > 0 && std::isfinite(mean)) microns_per_pixel_ = mean;
    }
    if (const char *colour = property(OPENSLIDE_PROPERTY_NAME_BACKGROUND_COLOR)) {
        background_ = static_cast<std::uint32_t>(std::strtoul(colour, nullptr, 16)) & 0xffffff;
    }
    const auto side = [this](const char *name) {
        const char *text = property(std::string("openslide.level[0].tile-") + name);
        const long value = text == nullptr ? 0 : std::strtol(text, nullptr, 10);
        return static_cast<std::uint32_t>(value > 0 && value <= 4096 ? value : 0);
    };
    tile_width_ = side("width");
    tile_height_ = side("height");
}

const char *slide_reader::property(const std::string &name) const {
    return openslide_get_property_value(slide_.get(), name.c_str());
}

/* After its first error a slide is of no use any more. */
void slide_reader::check() const {
    if (const char *error = openslide_get_error(slide_.get())) throw std::runtime_error(std::string("OpenSlide: ") + error);
}

void slide_reader::read(const mdm::region &region) {
    pixels_.resize(std::size_t{region.width} * region.height);
    // OpenSlide counts in pixels of level 0, whichever level is read.
    openslide_read_region(slide_.get(), pixels_.data(), std::llround(region.x * region.downsample),
                          std::llround(region.y * region.downsample), static_cast<int>(region.level), region.width,
                          region.height);
    check();
    for (std::uint32_t y = 0; y < region.height; y++) {
        auto *out = mdm::row<std::uint8_t>(region, y);
        for (std::uint32_t x = 0; x < region.width; x++) {
            // 0xAARRGGBB, already multiplied by alpha.
            const std::uint32_t pixel = pixels_[std::size_t{y} * region.width + x], missing = 255 - (pixel >> 24);
            for (int shift = 16; shift >= 0; shift -= 8) {
                const std::uint32_t behind = (background_ >> shift & 255) * missing / 255;
                *out++ = static_cast<std::uint8_t>(std::min(255u, (pixel >> shift & 255) + behind));
            }
        }
    }
}
