#pragma once

#include <tiffio.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <mdm.hpp>

/** A tiled, compressed TIFF of labels that is written from top to bottom; its palette has the colours of the classes. */
class label_tiff {
public:
    /** `microns_per_pixel` is 0 where it is unknown. Throws std::runtime_error. */
    label_tiff(const std::string &path, const mdm::result_size &size, const mdm::model &model, double microns_per_pixel);

    /** Takes the next rows. */
    void write(const mdm::band &band);
    /** After the last rows. */
    void close();

private:
    struct closer {
        void operator()(TIFF *file) const { TIFFClose(file); }
    };
    static constexpr std::uint32_t side = 256;

    void write_tiles();

    std::string path_;
    std::uint32_t width_, height_, top_ = 0, rows_ = 0;
    std::vector<std::uint8_t> strip_, tile_;
    std::unique_ptr<TIFF, closer> file_;
};
