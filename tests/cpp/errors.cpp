// mdm.hpp without exceptions. Usage: errors FOLDER
#include "check.hpp"

#include <cstring>

static void run(const std::string &folder) {
    mdm::error error;
    OK(mdm::check_abi(error));
    FAILS(mdm::status::io, "none", mdm::model::open(folder + "/none", error));
    mdm::error kept = std::move(error);
    OK(mdm::device_list list = mdm::device_list::make(error); CHECK(list.size() > 0); list.info(0, error));
    CHECK(kept.status() == mdm::status::io && std::strstr(kept.message(), "none") != nullptr);
    mdm::device_options options;
    options.threads = 1;
    OK(mdm::device device = mdm::device::open("cpu", options, error); CHECK(device.info(error).threads == 1));
    mdm::device device = mdm::device::open("cpu", error);
    OK();
    mdm::model model = mdm::model::open(folder + "/mod\xc3\xa8le.safetensors", error);
    OK(CHECK(model.info(error).classes == 3));
    OK(model.class_info(0, error));
    OK(model.block(0, error));
    OK(mdm::model::open_heads(folder + "/heads.safetensors", folder + "/backbone.safetensors", error));
    FAILS(mdm::status::model, "is empty", mdm::model::from_memory(std::string(), error));
    FAILS(mdm::status::invalid_argument, "no class", model.class_info(99, error));
    FAILS(mdm::status::invalid_handle, "NULL", CHECK(!mdm::segmenter::make(mdm::model(), device, error)));

    mdm::segmenter segmenter = mdm::segmenter::make(model, device, error);
    OK(CHECK(segmenter.result_size(width, height, mdm::label_type::u8, error).labels == pixel_count));
    const std::vector<std::uint8_t> pixels = drawn();
    const mdm::image_view image(pixels, width, height, mdm::pixel_format::grey8);
    std::vector<std::uint8_t> labels(pixel_count), again(pixel_count);
    OK(CHECK(segmenter.run(image, mdm::result_view(labels), {}, error).windows > 1));
    mdm::source source(reader{pixels}, width, height, mdm::pixel_format::grey8);
    mdm::sink sink([&](const mdm::band &band) {
        const auto rows = mdm::labels<std::uint8_t>(band);
        std::copy(rows.begin(), rows.end(), &again[std::size_t{band.y} * width]);
    });
    OK(segmenter.result_size(source, mdm::label_type::u8, error));
    OK(segmenter.run(source, sink, {}, error));
    CHECK(labels == again);
    FAILS(mdm::status::cancelled, "",
          segmenter.run(source, sink, mdm::control([](const mdm::progress &) { return false; }), error));
    FAILS(mdm::status::callback, "write callback returned 77",
          segmenter.run(source, mdm::sink([](const mdm::band &) { return mdm_status{77}; }), {}, error));
    const mdm::cancel_token token = mdm::cancel_token::make(error);
    OK(token.raise(error));
    FAILS(mdm::status::cancelled, "", segmenter.run(image, mdm::result_view(labels), mdm::control(token), error));

    mdm::features extractor = mdm::features::make(model, device, error);
    OK(CHECK(extractor.info(error).window == 32));
    int windows = 0;
    auto visit = [&](const mdm::window &window) {
        mdm::error inner;
        const mdm::window_info info = window.info(inner);
        std::vector<float> pixel(info.channels);
        window.pixel(0, 0, pixel, inner);
        if (inner) return inner.status();
        CHECK(!mdm::values(window.map(0, inner)).empty());
        windows++;
        return inner.status();
    };
    OK(extractor.run(image, visit, {}, error));
    OK(extractor.run(source, visit, {}, error));
    CHECK(windows > 2);
    FAILS(mdm::status::invalid_handle, "NULL", mdm::features().run(image, visit, {}, error));
    int messages = 0;
    {
        mdm::log_handler log(mdm::log_level::info, [&](mdm_log_level, const char *) { messages++; }, error);
        OK(mdm::device::open("cpu", error));
    }
    OK(mdm::device::open("cpu", error));
    CHECK(messages == 1);
    // Functions of mdm.h that are called directly have their errors too.
    FAILS(mdm::status::invalid_argument, "is NULL",
          error.from([&](mdm_error **place) { return mdm_device_get_info(device.get(), nullptr, place); }));
}

int main(int count, char **arguments) {
    CHECK(count == 2);
    run(arguments[1]);
    CHECK(mdm::object_count() == 0);
}
