#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <mdm.hpp>

/** The slide with its classes' colours over it, small enough to look at. Its memory does not grow with the slide. */
class overlay {
public:
    /** Of a result and the pixels that it was made from. */
    overlay(const mdm::result_size &size, const mdm::model &model);

    /** Takes RGB pixels of the slide, each once. */
    void add(const mdm::region &region);
    /** Takes rows of labels, from top to bottom. */
    void add(const mdm::band &band);
    /** Writes a PNG; throws std::runtime_error. */
    void write(const std::string &path);

private:
    void finish_row();

    std::uint32_t width_, height_, classes_, shrink_, columns_, rows_, label_rows_ = 0;
    std::vector<mdm::class_info> colours_;
    /** Of each pixel, the sum of the slide's pixels that it covers. */
    std::vector<std::uint32_t> sums_;
    /** How often a row of pixels has each class. */
    std::vector<std::uint32_t> counts_;
    std::vector<std::uint8_t> labels_;
};
