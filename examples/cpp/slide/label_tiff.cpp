#include "label_tiff.hpp"

#include <algorithm>
#include <array>
#include <cstdarg>
#include <cstdio>
#include <stdexcept>

namespace {

/* libtiff says what went wrong to a function of the process. */
thread_local std::string reason;

void remember(const char *, const char *format, std::va_list arguments) {
    std::array<char, 500> text{};
    std::vsnprintf(text.data(), text.size(), format, arguments);
    reason = text.data();
}

[[noreturn]] void fail(const std::string &path) {
    throw std::runtime_error(reason.find(path) == std::string::npos ? path + ": " + reason : reason);
}

} // namespace

label_tiff::label_tiff(const std::string &path, const mdm::result_size &size, const mdm::model &model,
                       double microns_per_pixel)
    : path_(path), width_(size.width), height_(size.height), strip_(std::size_t{size.width} * side), tile_(side * side) {
    TIFFSetErrorHandler(remember);
    TIFFSetWarningHandler(nullptr);
    // Classic TIFF ends at 4 GiB, which compressed labels rarely reach: BigTIFF only where they might.
    file_.reset(TIFFOpen(path.c_str(), size.labels > (std::size_t{1} << 31) ? "w8" : "w"));
    if (!file_) fail(path);

    std::array<std::uint16_t, 256> red{}, green{}, blue{};
    for (std::uint32_t index = 0; index < std::min(size.classes, 256u); index++) {
        const mdm::class_info info = model.class_info(index);
        red[index] = static_cast<std::uint16_t>(info.red * 257);
        green[index] = static_cast<std::uint16_t>(info.green * 257);
        blue[index] = static_cast<std::uint16_t>(info.blue * 257);
    }
    const bool deflate = TIFFIsCODECConfigured(COMPRESSION_ADOBE_DEFLATE) != 0;
    TIFF *file = file_.get();
    bool fine = TIFFSetField(file, TIFFTAG_IMAGEWIDTH, width_) && TIFFSetField(file, TIFFTAG_IMAGELENGTH, height_) &&
                TIFFSetField(file, TIFFTAG_TILEWIDTH, side) && TIFFSetField(file, TIFFTAG_TILELENGTH, side) &&
                TIFFSetField(file, TIFFTAG_BITSPERSAMPLE, 8) && TIFFSetField(file, TIFFTAG_SAMPLESPERPIXEL, 1) &&
                TIFFSetField(file, TIFFTAG_PLANARCONFIG, PLANARCONFIG_CONTIG) &&
                TIFFSetField(file, TIFFTAG_PHOTOMETRIC, PHOTOMETRIC_PALETTE) &&
                TIFFSetField(file, TIFFTAG_COLORMAP, red.data(), green.data(), blue.data()) &&
                TIFFSetField(file, TIFFTAG_COMPRESSION, deflate ? COMPRESSION_ADOBE_DEFLATE : COMPRESSION_LZW);
    if (microns_per_pixel > 0) {
        const double per_centimetre = 1e4 / microns_per_pixel;
        fine = fine && TIFFSetField(file, TIFFTAG_RESOLUTIONUNIT, RESUNIT_CENTIMETER) &&
               TIFFSetField(file, TIFFTAG_XRESOLUTION, per_centimetre) &&
               TIFFSetField(file, TIFFTAG_YRESOLUTION, per_centimetre);
    }
    if (!fine) fail(path);
}

void label_tiff::write(const mdm::band &band) {
    const mdm::span<const std::uint8_t> labels = mdm::labels<std::uint8_t>(band);
    for (std::uint32_t y = 0; y < band.height; y++) {
        const std::uint8_t *row = labels.data() + std::size_t{y} * width_;
        std::copy(row, row + width_, strip_.begin() + static_cast<std::ptrdiff_t>(std::size_t{rows_} * width_));
        if (++rows_ == side || top_ + rows_ == height_) write_tiles();
    }
}

void label_tiff::write_tiles() {
    for (std::uint32_t left = 0; left < width_; left += side) {
        const std::uint32_t columns = std::min(side, width_ - left);
        std::fill(tile_.begin(), tile_.end(), std::uint8_t{0});
        for (std::uint32_t y = 0; y < rows_; y++) {
            const std::uint8_t *row = strip_.data() + std::size_t{y} * width_ + left;
            std::copy(row, row + columns, tile_.begin() + static_cast<std::ptrdiff_t>(y * side));
        }
        if (TIFFWriteTile(file_.get(), tile_.data(), left, top_, 0, 0) < 0) fail(path_);
    }
    top_ += rows_;
    rows_ = 0;
}

void label_tiff::close() {
    // TIFFClose does not tell whether the directory could be written.
    if (!TIFFFlush(file_.get())) fail(path_);
    file_.reset();
}
