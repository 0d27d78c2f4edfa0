// Segments a grey image. Usage: client MODEL
#include <algorithm>
#include <cstdio>
#include <mdm.hpp>
#include <vector>

int main(int count, char **arguments) {
    if (count != 2) return 2;
    try {
        mdm::check_abi();
        const std::uint32_t width = 40, height = 33;
        const std::vector<std::uint8_t> pixels(width * height);
        std::vector<std::uint8_t> labels(pixels.size(), 99);
        mdm::segmenter segmenter = mdm::segmenter::make(mdm::model::open(arguments[1]), mdm::device::open("cpu"));
        segmenter.run(mdm::image_view(pixels, width, height, mdm::pixel_format::grey8), mdm::result_view(labels));
        return std::count(labels.begin(), labels.end(), 99) == 0 ? 0 : 1;
    } catch (const mdm::exception &exception) {
        std::fprintf(stderr, "%s\n", exception.what());
        return 1;
    }
}
