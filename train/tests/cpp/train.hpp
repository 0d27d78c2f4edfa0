// What the test programs of training share.
#ifndef TRAIN_HPP
#define TRAIN_HPP

#include "../../../tests/cpp/check.hpp"

#include <mdm_train.hpp>

// Whether a pixel of `drawn` is bright.
inline bool is_bright(std::size_t i) { return (i % width / 9 + i / width / 7) % 2 != 0; }

// Labels of every fourth row.
inline std::vector<std::uint8_t> strokes() {
    std::vector<std::uint8_t> labels(pixel_count, mdm::unlabelled);
    for (std::size_t i = 0; i < pixel_count; i++) {
        if (i / width % 4 == 2) labels[i] = is_bright(i);
    }
    return labels;
}

// Enough to tell light from dark.
inline mdm::fitter_options quick_options() {
    mdm::fitter_options options;
    options.set_classes(2).heads = 2;
    options.epochs = 1;
    options.min_steps = 30;
    options.batch = 64;
    options.refine_steps = 10;
    options.refine_batch = 64;
    options.learning_rate = 0.01;
    return options;
}

// Four steps of a small network.
inline mdm::trainer_options small_recipe() {
    mdm::trainer_options options;
    options.width = 32;
    options.size = 32;
    options.batch = 2;
    options.steps = 4;
    options.seed = 5;
    return options;
}

inline std::size_t right_ones(const std::vector<std::uint8_t> &labels) {
    std::size_t right = 0;
    for (std::size_t i = 0; i < labels.size(); i++) right += labels[i] == is_bright(i);
    return right;
}

#endif
