#include "overlay.hpp"

#include <png.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace {

constexpr std::uint32_t largest_side = 2048;
constexpr double opacity = 0.3;

} // namespace

overlay::overlay(const mdm::result_size &size, const mdm::model &model)
    : width_(size.width), height_(size.height), classes_(size.classes),
      shrink_((std::max(size.width, size.height) - 1) / largest_side + 1), columns_((size.width - 1) / shrink_ + 1),
      rows_((size.height - 1) / shrink_ + 1), sums_(std::size_t{columns_} * rows_ * 3),
      counts_(std::size_t{columns_} * classes_), labels_(std::size_t{columns_} * rows_) {
    for (std::uint32_t index = 0; index < classes_; index++) colours_.push_back(model.class_info(index));
}

void overlay::add(const mdm::region &region) {
    for (std::uint32_t y = 0; y < region.height; y++) {
        const auto *pixel = mdm::row<const std::uint8_t>(region, y);
        std::uint32_t *sums = sums_.data() + std::size_t{(region.y + y) / shrink_} * columns_ * 3;
        for (std::uint32_t x = 0; x < region.width; x++) {
            std::uint32_t *sum = sums + std::size_t{(region.x + x) / shrink_} * 3;
            for (int channel = 0; channel < 3; channel++) sum[channel] += *pixel++;
        }
    }
}

void overlay::add(const mdm::band &band) {
    const mdm::span<const std::uint8_t> labels = mdm::labels<std::uint8_t>(band);
    for (std::uint32_t y = 0; y < band.height; y++) {
        for (std::uint32_t x = 0; x < width_; x++) {
            counts_[std::size_t{x / shrink_} * classes_ + labels[std::size_t{y} * width_ + x]]++;
        }
        if (++label_rows_ % shrink_ == 0 || label_rows_ == height_) finish_row();
    }
}

/* Each pixel gets the class that most of what it covers has. */
void overlay::finish_row() {
    std::uint8_t *row = labels_.data() + std::size_t{(label_rows_ - 1) / shrink_} * columns_;
    for (std::uint32_t x = 0; x < columns_; x++) {
        const auto first = counts_.begin() + static_cast<std::ptrdiff_t>(std::size_t{x} * classes_);
        row[x] = static_cast<std::uint8_t>(std::max_element(first, first + classes_) - first);
    }
    std::fill(counts_.begin(), counts_.end(), 0u);
}

void overlay::write(const std::string &path) {
    std::vector<std::uint8_t> pixels(sums_.size());
    for (std::uint32_t y = 0; y < rows_; y++) {
        for (std::uint32_t x = 0; x < columns_; x++) {
            const std::size_t at = std::size_t{y} * columns_ + x;
            const std::uint32_t covered =
                std::min(shrink_, width_ - x * shrink_) * std::min(shrink_, height_ - y * shrink_);
            const std::uint8_t label = labels_[at];
            // Classes are tinted and outlined; the first one is what is behind them.
            const bool edge = (x + 1 < columns_ && labels_[at + 1] != label) ||
                              (y + 1 < rows_ && labels_[at + columns_] != label) ||
                              (x > 0 && labels_[at - 1] != label) || (y > 0 && labels_[at - columns_] != label);
            const double tint = label == 0 ? 0 : edge ? 1 : opacity;
            const std::uint8_t colour[] = {colours_[label].red, colours_[label].green, colours_[label].blue};
            for (std::size_t channel = 0; channel < 3; channel++) {
                const double seen = static_cast<double>(sums_[at * 3 + channel]) / covered;
                pixels[at * 3 + channel] =
                    static_cast<std::uint8_t>(std::lround(seen + tint * (colour[channel] - seen)));
            }
        }
    }
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    image.width = columns_;
    image.height = rows_;
    image.format = PNG_FORMAT_RGB;
    if (!png_image_write_to_file(&image, path.c_str(), 0, pixels.data(), 0, nullptr)) {
        throw std::runtime_error(path + ": " + image.message);
    }
}
