// All of mdm.hpp, with exceptions. Usage: interface FOLDER
#include "check.hpp"

#include <array>
#include <cmath>
#include <cstring>
#include <fstream>
#include <memory>
#include <thread>
#if __cplusplus >= 202002L
#include <span>
#endif

namespace {

static_assert(moves_only<mdm::device_list> && moves_only<mdm::device> && moves_only<mdm::model>);
static_assert(moves_only<mdm::cancel_token> && moves_only<mdm::segmenter> && moves_only<mdm::features>);
static_assert(sizeof(mdm::image_view) == sizeof(mdm_image) && sizeof(mdm::result_view) == sizeof(mdm_result));
static_assert(!std::is_move_constructible_v<mdm::log_handler<void (*)(mdm_log_level, const char *)>>);
static_assert(!std::is_constructible_v<mdm::span<std::uint8_t>, const std::vector<std::uint8_t> &>);

void versions() {
    mdm::check_abi();
    CHECK(std::string(mdm::version()).size() >= 5);
    CHECK(mdm::abi_version() >= MDM_ABI_VERSION);
    CHECK(std::string(mdm::status_name(mdm::status::io)) == "MDM_ERROR_IO");
}

void views() {
    std::vector<float> values{1, 2, 3};
    mdm::span<float> all(values);
    mdm::span<const float> read = all;
    CHECK(read.size() == 3 && read.size_bytes() == 12 && !read.empty() && read[2] == 3 && read.data() == values.data());
    float sum = 0;
    for (float value : read) sum += value;
    CHECK(sum == 6);
    CHECK(mdm::span<float>().empty());
    std::array<float, 2> two{4, 5};
    all = two;
    CHECK(all.size() == 2 && all[0] == 4);
#if __cplusplus >= 202002L
    const std::span<const float> standard = mdm::span<float>(values);
    CHECK(standard.size() == 3);
    read = standard;
    CHECK(read.size() == 3);
#endif
}

void objects(const std::string &folder) {
    const std::size_t before = mdm::object_count();
    {
        mdm::model model = mdm::model::open(folder + "/backbone.safetensors");
        CHECK(model && mdm::object_count() == before + 1);
        mdm::model moved = std::move(model);
        CHECK(moved && !model && mdm::object_count() == before + 1);
        fails(mdm::status::invalid_handle, "NULL", [&] { model.info(); });
        model = mdm::model::open((folder + "/heads.safetensors").c_str());
        model = std::move(moved);
        CHECK(model && !moved && mdm::object_count() == before + 1);
        model = mdm::model(model.release());
        CHECK(model.get() != nullptr && mdm::object_count() == before + 1);
        model.reset();
        CHECK(!model && mdm::object_count() == before);
        moved = mdm::model::open_heads(folder + "/heads.safetensors", folder + "/backbone.safetensors");
        CHECK(moved.info().heads == 2);
    }
    CHECK(mdm::object_count() == before);
    fails(mdm::status::io, "none", [&] { mdm::model::open(folder + "/none"); });
    fails(mdm::status::invalid_argument, "NULL", [] { mdm::model::open(nullptr); });
    CHECK(mdm::object_count() == before);
    static_assert(std::is_base_of_v<std::runtime_error, mdm::exception>);
}

void models(const mdm::model &model, const std::string &path) {
    const mdm::model_info info = model.info();
    CHECK(info.classes == 3 && info.heads == 2 && info.window == 32 && path == info.path);
    const mdm::class_info nucleus = model.class_info(1);
    CHECK(std::string(nucleus.name) == "nucleus" && nucleus.red == 1 && nucleus.blue == 3);
    CHECK(model.block(0).channels == 32);
    CHECK(model.assumption(0) == nullptr);
    fails(mdm::status::invalid_argument, "no class 3", [&] { model.class_info(3); });
    fails(mdm::status::invalid_argument, "no block", [&] { model.block(info.blocks); });
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    CHECK(mdm::model::from_memory(bytes).info().classes == 3);
    CHECK(mdm::model::from_memory(bytes.data(), bytes.size()).info().parameters == info.parameters);
    fails(mdm::status::model, "memory", [&] { mdm::model::from_memory(bytes.data(), bytes.size() - 1); });
#if defined(__cpp_lib_char8_t)
    CHECK(mdm::model::open(std::u8string(path.begin(), path.end())).info().classes == 3);
#endif
}

void devices() {
    const mdm::device_list list = mdm::device_list::make();
    CHECK(list.size() >= 1);
    const mdm::device_info last = list.info(list.size() - 1);
    CHECK(last.kind == mdm::device_kind::cpu && std::string(last.backend) == "cpu");
    fails(mdm::status::invalid_argument, "no device", [&] { list.info(list.size()); });
    mdm::device_options options;
    options.threads = 1;
    options.precision = mdm::precision::f32;
    const mdm::device device = mdm::device::open("cpu", options);
    CHECK(device.info().threads == 1 && device.reason()[0] != 0);
    fails(mdm::status::device, "no such thing", [] { mdm::device::open("no such thing"); });
    CHECK(mdm::device::open(nullptr).reason()[0] != 0);
}

void log_messages() {
    int messages = 0;
    auto count = [&](mdm_log_level level, const char *message) {
        CHECK(level >= mdm::log_level::error && level <= mdm::log_level::debug && message[0] != 0);
        messages++;
        throw own_exception{1};
    };
    fails(mdm::status::invalid_argument, "log level", [&] { mdm::log_handler never(77, count); });
    {
        const mdm::log_handler log(mdm::log_level::info, count);
        mdm::device::open("cpu");
        CHECK(messages == 1);
    }
    mdm::device::open("cpu");
    CHECK(messages == 1);
    mdm::error error;
    {
        const mdm::log_handler log(77, count, error);
        CHECK(error.status() == mdm::status::invalid_argument);
    }
    const mdm::log_handler log(mdm::log_level::info, count, error);
    CHECK(!error);
    mdm::device::open("cpu");
    CHECK(messages == 2);
}

void images(const mdm::model &model, const mdm::device &device) {
    const std::vector<std::uint8_t> pixels = drawn();
    const mdm::image_view image(pixels, width, height, mdm::pixel_format::grey8);
    mdm::segment_options options;
    options.outputs = mdm::output::probabilities | mdm::output::uncertainty;
    options.combine = mdm::combine::mean;
    mdm::segmenter segmenter = mdm::segmenter::make(model, device, options);
    const mdm::result_size size = segmenter.result_size(width, height, mdm::label_type::u16);
    CHECK(size.labels == pixel_count * 2 && size.classes == 3 && segmenter.result_size(width, height).labels == pixel_count);
    std::vector<std::uint8_t> labels(pixel_count);
    std::vector<float> probabilities(pixel_count * 3), uncertainty(pixel_count);
    mdm::result_view result(labels);
    result.set_probabilities(probabilities).set_uncertainty(uncertainty);
    const mdm::report report = segmenter.run(image, result);
    CHECK(report.windows > 1 && report.scaling == mdm::scaling::image_unknown && report.scaled_width == width);
    for (std::size_t i = 0; i < pixel_count; i++) {
        const float *p = &probabilities[3 * i];
        CHECK(labels[i] < 3 && std::abs(p[0] + p[1] + p[2] - 1) < 1e-3f && std::isfinite(uncertainty[i]));
    }

    std::vector<std::uint16_t> wide(pixel_count);
    CHECK(segmenter.run(image, mdm::result_view(wide)).windows == report.windows);
    CHECK(std::equal(labels.begin(), labels.end(), wide.begin()));
    std::vector<std::uint8_t> again(pixel_count);
    segmenter.run(mdm::image_view(pixels.data(), pixels.size(), width, height, mdm::pixel_format::grey8),
                  mdm::result_view(mdm::span<std::uint8_t>(again)));
    CHECK(labels == again);
    std::vector<float> real(pixel_count);
    for (std::size_t i = 0; i < pixel_count; i++) real[i] = static_cast<float>(pixels[i]) / 255;
    segmenter.run(mdm::image_view(real, width, height, mdm::pixel_format::grey_f32), mdm::result_view(again));
    fails(mdm::status::buffer_too_small, "labels", [&] {
        segmenter.run(image, mdm::result_view(mdm::span<std::uint8_t>(labels.data(), pixel_count - 1)));
    });

    std::vector<std::uint16_t> twelve(pixel_count);
    for (std::size_t i = 0; i < pixel_count; i++) twelve[i] = static_cast<std::uint16_t>(pixels[i] * 4095 / 255);
    mdm::image_view camera(twelve, width, height, mdm::pixel_format::grey16);
    CHECK(segmenter.run(camera, mdm::result_view(again)).intensity_warnings == mdm::intensities::narrow);
    const mdm::report declared = segmenter.run(camera.set_range(0, 4095), mdm::result_view(again));
    CHECK(declared.intensity_warnings == 0 && declared.range_high == 4095);
    mdm::segment_options measured;
    measured.range = mdm::range::percentile;
    const mdm::report percentiles = mdm::segmenter::make(model, device, measured).run(camera, mdm::result_view(again));
    CHECK(percentiles.range_low > 0 && percentiles.range_high < 4095);

    // By callbacks, in tiles that do not divide the image.
    std::fill(again.begin(), again.end(), std::uint8_t{99});
    std::uint32_t next = 0;
    mdm::source source(reader{pixels}, width, height, mdm::pixel_format::grey8);
    source.tile_width = 33;
    source.tile_height = 17;
    const mdm::sink sink([&](const mdm::band &band) {
        CHECK(band.y == next);
        const std::size_t at = std::size_t{next} * width;
        const auto rows = mdm::labels<std::uint8_t>(band);
        std::copy(rows.begin(), rows.end(), &again[at]);
        CHECK(mdm::probabilities(band).size() == rows.size() * 3 && mdm::uncertainty(band).size() == rows.size());
        CHECK(std::memcmp(mdm::probabilities(band).data(), &probabilities[3 * at], rows.size() * 12) == 0);
        CHECK(std::memcmp(mdm::uncertainty(band).data(), &uncertainty[at], rows.size() * 4) == 0);
        next += band.height;
    });
    CHECK(segmenter.result_size(source).labels == pixel_count);
    CHECK(segmenter.run(source, sink).windows == report.windows);
    CHECK(next == height && labels == again && source.reader().reads == 9);
    next = 0;
    segmenter.run(source, mdm::sink([&](const mdm::band &band) {
        const auto rows = mdm::labels<std::uint16_t>(band);
        CHECK(std::equal(rows.begin(), rows.end(), &labels[std::size_t{band.y} * width]));
        next += band.height;
    }, mdm::label_type::u16));
    CHECK(next == height);

    const std::vector<mdm::level> levels{{width, height, 1}, {width / 2, height / 2, 2}};
    source.set_levels(levels).microns_per_pixel = 0.25;
    CHECK(segmenter.result_size(source).level == 1 && segmenter.result_size(source).width == width / 2);
}

// How callbacks end a run, and what then comes out of it.
void callbacks(const mdm::model &model, const mdm::device &device) {
    const std::vector<std::uint8_t> pixels = drawn();
    const mdm::image_view image(pixels, width, height, mdm::pixel_format::grey8);
    std::vector<std::uint8_t> labels(pixel_count);
    const mdm::result_view result(labels);
    mdm::segmenter segmenter = mdm::segmenter::make(model, device);
    double last = 0;
    auto watch = [&](const mdm::progress &progress) {
        CHECK(progress.fraction >= last && progress.windows > 0);
        last = progress.fraction;
    };
    segmenter.run(image, result, mdm::control(watch));
    CHECK(last == 1);
    segmenter.run(image, result, mdm::control());

    fails(mdm::status::cancelled, "cancelled", [&] {
        segmenter.run(image, result, mdm::control([](const mdm::progress &) { return false; }));
    });
    segmenter.run(image, result, mdm::control([](const mdm::progress &) { return true; }));
    throws(1, [&] {
        segmenter.run(image, result, mdm::control([](const mdm::progress &) { throw own_exception{1}; }));
    });

    mdm::source source(reader{pixels}, width, height, mdm::pixel_format::grey8);
    mdm::sink ignore([](const mdm::band &) {});
    auto reads = [&](auto read) {
        return mdm::source(read, width, height, mdm::pixel_format::grey8);
    };
    throws(2, [&] { segmenter.run(reads([](const mdm::region &) { throw own_exception{2}; }), ignore); });
    throws(3, [&] { segmenter.run(source, mdm::sink([](const mdm::band &) { throw own_exception{3}; })); });
    throws(4, [&] {
        // What does not move or copy cheaply is not copied on the way.
        auto only = std::make_unique<int>(4);
        segmenter.run(source, ignore, mdm::control([only = std::move(only)](const mdm::progress &) {
            throw own_exception{*only};
        }));
    });
    fails(mdm::status::cancelled, "", [&] { segmenter.run(reads([](const mdm::region &) { return false; }), ignore); });
    fails(mdm::status::callback, "read callback returned 4", [&] {
        segmenter.run(reads([](const mdm::region &) { return mdm::status::io; }), ignore);
    });
    fails(mdm::status::callback, "write callback returned 77", [&] {
        segmenter.run(source, mdm::sink([](const mdm::band &) { return mdm_status{77}; }));
    });
    fails(mdm::status::busy, "in use", [&] {
        segmenter.run(source, mdm::sink([&](const mdm::band &) { segmenter.run(image, result); }));
    });
    // An exception comes out although an error is asked for, and the error tells what the library knows.
    mdm::error error;
    throws(5, [&] {
        segmenter.run(source, mdm::sink([](const mdm::band &) { throw own_exception{5}; }), {}, error);
    });
    CHECK(error.status() == mdm::status::callback);
    segmenter.run(source, ignore, {}, error);
    CHECK(!error && error.status() == mdm::status::ok && error.message()[0] == 0);

    const mdm::cancel_token token = mdm::cancel_token::make();
    CHECK(!token.is_raised());
    segmenter.run(image, result, mdm::control(token));
    std::thread other;
    fails(mdm::status::cancelled, "cancelled", [&] {
        bool started = false;
        for (;;) {
            segmenter.run(image, result, mdm::control(token, [&](const mdm::progress &) {
                if (!std::exchange(started, true)) other = std::thread([&] { token.raise(); });
            }));
        }
    });
    other.join();
    CHECK(token.is_raised());
}

void features(const mdm::model &model, const mdm::device &device) {
    const std::vector<std::uint8_t> pixels = drawn();
    const mdm::image_view image(pixels, width, height, mdm::pixel_format::grey8);
    const std::array<std::uint32_t, 2> timesteps{50, 250};
    const std::vector<std::uint32_t> blocks{0};
    mdm::feature_options options;
    options.set_timesteps(timesteps).set_blocks(blocks).normalise = mdm::normalise::yes;
    options.corrupt = mdm::corrupt::no;
    options.overlap = mdm::overlap_none;
    mdm::features extractor = mdm::features::make(model, device, options);
    const mdm::features_info info = extractor.info();
    CHECK(info.maps == 2 && info.channels == 64 && info.window == 32);
    int windows = 0;
    auto visit = [&](const mdm::window &window) {
        const mdm::window_info at = window.info();
        CHECK(at.width == 32 && at.height == 32 && at.channels == info.channels);
        const mdm::map map = window.map(1);
        CHECK(map.timestep == 250 && map.block == 0);
        CHECK(mdm::values(map).size() == std::size_t{map.height} * map.width * map.channels);
        std::vector<float> pixel(info.channels);
        window.pixel(31, 31, pixel);
        CHECK(std::isfinite(pixel[63]));
        fails(mdm::status::buffer_too_small, "bytes", [&] { window.pixel(0, 0, {pixel.data(), 63}); });
        fails(mdm::status::invalid_argument, "no map 2", [&] { window.map(2); });
        windows++;
    };
    extractor.run(image, visit);
    CHECK(windows == 6);
    double last = 0;
    extractor.run(mdm::source(reader{pixels}, width, height, mdm::pixel_format::grey8), visit,
                  mdm::control([&](const mdm::progress &progress) { last = progress.fraction; }));
    CHECK(windows == 12 && last == 1);
    throws(6, [&] { extractor.run(image, [](const mdm::window &) { throw own_exception{6}; }); });
    throws(7, [&] {
        extractor.run(mdm::source([](const mdm::region &) { throw own_exception{7}; }, width, height, mdm::pixel_format::grey8),
                      visit);
    });
    fails(mdm::status::cancelled, "", [&] { extractor.run(image, [](const mdm::window &) { return false; }); });
    fails(mdm::status::callback, "visit callback returned 5",
          [&] { extractor.run(image, [](const mdm::window &) { return mdm_status{5}; }); });
    // What a callback does not catch keeps what it is.
    fails(mdm::status::invalid_argument, "no map 9", [&] { extractor.run(image, [](const mdm::window &window) { window.map(9); }); });
    CHECK(mdm::features::make(model, device).info().maps == 2);
}

} // namespace

int main(int count, char **arguments) {
    CHECK(count == 2);
    const std::string folder = arguments[1], path = folder + "/mod\xc3\xa8le.safetensors";
    versions();
    views();
    objects(folder);
    devices();
    log_messages();
    {
        const mdm::model model = mdm::model::open(path);
        mdm::device_options options;
        options.threads = 1;
        const mdm::device device = mdm::device::open("cpu", options);
        models(model, path);
        images(model, device);
        callbacks(model, device);
        features(model, device);
    }
    CHECK(mdm::object_count() == 0);
}
