#pragma once

#include <openslide.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <mdm.hpp>

/** A slide that OpenSlide reads, as libmdm wants it: RGB, where nothing was scanned in the slide's background colour. */
class slide_reader {
public:
    /** Throws std::runtime_error. */
    explicit slide_reader(const std::string &path);

    std::uint32_t width() const { return levels_.front().width; }
    std::uint32_t height() const { return levels_.front().height; }
    const std::vector<mdm_level> &levels() const { return levels_; }
    /** Size of a pixel of level 0 in micrometres; 0 where the slide does not say. */
    double microns_per_pixel() const { return microns_per_pixel_; }
    /** Sides of the file's own tiles, as far as they are known; 0 otherwise. */
    std::uint32_t tile_width() const { return tile_width_; }
    std::uint32_t tile_height() const { return tile_height_; }

    /** Reads a region; throws std::runtime_error. */
    void read(const mdm::region &region);

private:
    struct closer {
        void operator()(openslide_t *slide) const { openslide_close(slide); }
    };

    const char *property(const std::string &name) const;
    void check() const;

    std::unique_ptr<openslide_t, closer> slide_;
    std::vector<mdm_level> levels_;
    double microns_per_pixel_ = 0;
    std::uint32_t background_ = 0xffffff, tile_width_ = 0, tile_height_ = 0;
    std::vector<std::uint32_t> pixels_;
};
