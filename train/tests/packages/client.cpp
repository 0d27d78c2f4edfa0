// Fits heads to a bright square, finds it again, and trains a backbone for a step. Usage: client BACKBONE
#include <cstdio>
#include <mdm_train.hpp>
#include <vector>

static bool is_bright(std::size_t at, std::uint32_t side) {
    return at / side >= 8 && at / side < 36 && at % side >= 12 && at % side < 40;
}

int main(int count, char **arguments) {
    if (count != 2) return 2;
    try {
        mdm::check_train_abi();
        const std::uint32_t side = 48;
        std::vector<std::uint8_t> pixels(side * side), labels(pixels.size(), mdm::unlabelled), found(pixels.size());
        for (std::size_t at = 0; at < pixels.size(); at++) {
            pixels[at] = static_cast<std::uint8_t>(40 + 150 * is_bright(at, side) + at % 7);
            if (at / side % 4 == 2) labels[at] = is_bright(at, side);
        }
        const mdm::image_view image(pixels, side, side, mdm::pixel_format::grey8);
        const mdm::device device = mdm::device::open("cpu");
        mdm::fitter_options options;
        options.set_classes(2).heads = 1;
        options.min_steps = 60;
        options.batch = 64;
        options.learning_rate = 0.01;
        mdm::fitter fitter = mdm::fitter::make(mdm::model::open(arguments[1]), device, options);
        fitter.set_image("square", image);
        fitter.set_labels("square", mdm::labels_view(labels, side, side));
        fitter.fit();
        mdm::segmenter::make(fitter.model(), device).run(image, mdm::result_view(found));
        std::size_t right = 0;
        for (std::size_t at = 0; at < found.size(); at++) right += found[at] == is_bright(at, side);

        mdm::trainer_options recipe;
        recipe.width = 32;
        recipe.size = 32;
        recipe.batch = 1;
        mdm::image_reader reader(1, [&](std::uint64_t) { return image; });
        mdm::trainer trainer = mdm::trainer::make(device, recipe, reader);
        return right > found.size() * 9 / 10 && trainer.run(1).loss > 0 ? 0 : 1;
    } catch (const mdm::exception &exception) {
        std::fprintf(stderr, "%s\n", exception.what());
        return 1;
    }
}
