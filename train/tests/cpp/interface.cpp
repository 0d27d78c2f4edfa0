// All of mdm_train.hpp, with exceptions. Usage: interface FOLDER
#include "train.hpp"

#include <atomic>
#include <cmath>
#include <fstream>
#include <memory>
#include <thread>

namespace {

static_assert(moves_only<mdm::fitter> && moves_only<mdm::trainer>);
static_assert(sizeof(mdm::labels_view) == sizeof(mdm_labels) && sizeof(mdm::fitter_options) == sizeof(mdm_fitter_options));
static_assert(sizeof(mdm::training_files) == sizeof(mdm_training_images));
using function_reader = mdm::image_reader<mdm::image_view (*)(std::uint64_t)>;
static_assert(!std::is_move_constructible_v<function_reader> && !std::is_move_assignable_v<function_reader>);

void versions() {
    mdm::check_train_abi();
    CHECK(mdm::train_abi_version() >= MDM_TRAIN_ABI_VERSION);
    CHECK(mdm::stored::f32 != mdm::stored::bf16 && mdm::loss::as_corruption == 0 && mdm::corruption::mask == 0);
    CHECK(mdm::tune_loss::standard == 0 && mdm::tune_loss::cross_entropy != mdm::tune_loss::boundary_weighted);
    CHECK(mdm::schedule::constant == 0 && mdm::status::diverged == MDM_TRAIN_ERROR_DIVERGED);
}

void fits(const mdm::model &backbone, const mdm::device &device, const std::string &folder) {
    const std::vector<std::uint8_t> pixels = drawn();
    std::vector<std::uint8_t> labels = strokes(), found(pixel_count), again(pixel_count);
    const mdm::image_view image(pixels, width, height, mdm::pixel_format::grey8);
    const std::vector<const char *> names{"dark", "bright"};
    const std::vector<std::uint8_t> colours{0, 0, 0, 250, 200, 30};
    mdm::fitter_options options = quick_options();
    options.set_classes(names).set_class_colours(colours.data()).held_out = 1;
    mdm::fitter fitter = mdm::fitter::make(backbone, device, options);
    fails(mdm::status::invalid_argument, "fitted", [&] { fitter.model(); });
    fails(mdm::status::invalid_argument, "no image", [&] { fitter.set_labels("a", mdm::labels_view(labels, width, height)); });
    fitter.set_image("a", image);
    fails(mdm::status::invalid_argument, "one size", [&] {
        fitter.set_labels("a", mdm::labels_view({labels.data(), pixel_count - width}, width, height - 1));
    });

    double last = 0;
    auto watch = [&](const mdm::progress &progress) { last = progress.fraction; };
    const mdm::label_report said = fitter.set_labels("a", mdm::labels_view(labels, width, height), mdm::control(watch));
    CHECK(said.labelled > 0 && said.windows > 1 && last == 1);
    last = 0;
    const mdm::fit_report report = fitter.fit(mdm::control(watch));
    CHECK(report.steps == 60 && report.held_out_samples > 0 && report.accuracy > 0.9 && last == 1);
    const mdm::fitter_info info = fitter.info();
    CHECK(info.images == 1 && info.classes == 2 && info.heads == 2 && info.samples == report.samples);
    CHECK(fitter.class_pixels(0) > 0 && fitter.class_pixels(1) > 0);
    fails(mdm::status::invalid_argument, "no class 2", [&] { fitter.class_pixels(2); });

    // All of the image, in 16 bits; the features are there.
    std::vector<std::uint16_t> wide(pixel_count);
    for (std::size_t i = 0; i < pixel_count; i++) wide[i] = is_bright(i);
    const mdm::label_report more = fitter.set_labels("a", mdm::labels_view(wide, width, height));
    CHECK(more.labelled == pixel_count && more.windows == 0 && more.fresh > 0);
    CHECK(fitter.refine().steps == 20);

    const mdm::model fitted = fitter.model();
    const mdm::class_info bright = fitted.class_info(1);
    CHECK(std::string(bright.name) == "bright" && bright.red == 250 && bright.blue == 30);
    mdm::segmenter::make(fitted, device).run(image, mdm::result_view(found));
    CHECK(right_ones(found) > pixel_count * 8 / 10);
    const std::string path = folder + "/cpp-fitted.safetensors";
    mdm::save(fitted, path);
    const mdm::model opened = mdm::model::open(path);
    mdm::segmenter::make(opened, device).run(image, mdm::result_view(again));
    CHECK(found == again);
    CHECK(mdm::fitter::make(opened, device, options).info().heads == 2);
    fails(mdm::status::invalid_argument, "parts", [&] { mdm::save(backbone, path, mdm::part::heads); });
    mdm::save(backbone, path, mdm::part::backbone, mdm::stored::f16);
    CHECK(mdm::model::open(path).info().heads == 0);

    // A network of its own; the fitter's heads stay.
    mdm::tune_options tuning;
    tuning.steps = 3;
    tuning.batch = 1;
    tuning.loss = mdm::tune_loss::cross_entropy_and_dice;
    mdm::tune_report went;
    last = 0;
    const mdm::model tuned = fitter.tune(tuning, went, mdm::control(watch));
    CHECK(went.steps == 3 && went.loss > 0 && went.held_out_images == 0 && last == 1);
    CHECK(tuned.info().heads == 1 && fitter.tune(tuning).info().classes == 2 && fitter.info().heads == 2);
    mdm::segmenter::make(tuned, device).run(image, mdm::result_view(found));
    tuning.size = 33;
    fails(mdm::status::invalid_argument, "size", [&] { fitter.tune(tuning); });
    tuning.size = 0;
    throws(6, [&] { fitter.tune(tuning, went, mdm::control([](const mdm::progress &) { throw own_exception{6}; })); });

    fitter.set_classes(mdm::fitter_options().set_classes(3));
    CHECK(fitter.info().classes == 3 && fitter.info().heads == 0);
    fitter.remove("a");
    fails(mdm::status::invalid_argument, "no image", [&] { fitter.remove("a"); });
    CHECK(fitter.info().images == 0);

    mdm::feature_options features;
    const std::vector<std::uint32_t> blocks{0}, wrong{99};
    mdm::fitter other = mdm::fitter::make(backbone, device, options, features.set_blocks(blocks));
    CHECK(other && other.info().samples == 0);
    fails(mdm::status::invalid_argument, "block", [&] {
        mdm::fitter::make(backbone, device, options, features.set_blocks(wrong));
    });
    fails(mdm::status::invalid_handle, "NULL", [] { mdm::fitter().refine(); });
}

// How callbacks end a fit, and what then comes out of it.
void callbacks(const mdm::model &backbone, const mdm::device &device) {
    const std::vector<std::uint8_t> pixels = drawn(), labels = strokes();
    mdm::fitter fitter = mdm::fitter::make(backbone, device, quick_options());
    fitter.set_image("a", mdm::image_view(pixels, width, height, mdm::pixel_format::grey8));
    const mdm::labels_view said(labels, width, height);
    throws(1, [&] {
        fitter.set_labels("a", said, mdm::control([](const mdm::progress &) { throw own_exception{1}; }));
    });
    fails(mdm::status::cancelled, "cancelled", [&] {
        fitter.set_labels("a", said, mdm::control([](const mdm::progress &) { return false; }));
    });
    fitter.set_labels("a", said);
    throws(2, [&] { fitter.fit(mdm::control([](const mdm::progress &) { throw own_exception{2}; })); });
    mdm::error error;
    throws(3, [&] { fitter.fit(mdm::control([](const mdm::progress &) { throw own_exception{3}; }), error); });
    fitter.fit({}, error);
    CHECK(!error);
    fails(mdm::status::busy, "in use", [&] { fitter.refine(mdm::control([&](const mdm::progress &) { fitter.info(); })); });
    const mdm::cancel_token token = mdm::cancel_token::make();
    std::thread thread([&] { token.raise(); });
    fails(mdm::status::cancelled, "cancelled", [&] {
        for (;;) fitter.refine(mdm::control(token));
    });
    thread.join();
}

// A BMP of 24 bits.
void write_picture(const std::string &path, const std::vector<std::uint8_t> &pixels) {
    const std::uint32_t row = (3 * width + 3) / 4 * 4;
    std::vector<std::uint8_t> bytes(54 + row * height);
    auto put = [&](std::size_t at, std::uint32_t value) {
        for (int i = 0; i < 4; i++) bytes[at++] = static_cast<std::uint8_t>(value >> 8 * i);
    };
    bytes[0] = 'B';
    bytes[1] = 'M';
    put(2, static_cast<std::uint32_t>(bytes.size()));
    put(10, 54);
    put(14, 40);
    put(18, width);
    put(22, height);
    put(26, 1 | 24 << 16);
    put(34, row * height);
    for (std::size_t i = 0; i < pixel_count; i++) {
        std::fill_n(&bytes[54 + i / width * row + i % width * 3], 3, pixels[i]);
    }
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char *>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    CHECK(file.flush());
}

void trains(const mdm::device &device, const std::string &folder) {
    const std::vector<std::uint8_t> pixels = drawn();
    std::atomic<int> read{0}, released{0};
    {
        // What does not copy is not copied; an image that throws is left out.
        auto offset = std::make_unique<int>(3);
        mdm::image_reader reader(
            4,
            [&, offset = std::move(offset)](std::uint64_t index) {
                if (index + 1 == static_cast<std::uint64_t>(*offset)) throw own_exception{1};
                read++;
                return mdm::image_view(pixels, width, height, mdm::pixel_format::grey8);
            },
            [&](std::uint64_t index, const mdm_image &image) {
                CHECK(index != 2 && image.pixels == pixels.data());
                released++;
                throw own_exception{2};
            });
        reader.concurrent = 1;
        const std::string checkpoint = folder + "/cpp.checkpoint";
        mdm::trainer trainer = mdm::trainer::make(device, small_recipe(), reader);
        double last = 0;
        const mdm::step_report two = trainer.run(2, mdm::control([&](const mdm::progress &progress) { last = progress.fraction; }));
        CHECK(two.step == 2 && two.applied == 1 && two.loss > 0 && last > 0);
        trainer.save(checkpoint);
        const mdm::step_report four = trainer.run(0);
        const mdm::trainer_info info = trainer.info();
        CHECK(four.step == 4 && info.step == 4 && info.steps == 4 && info.images == 4 && info.size == 32 && info.batch == 2);
        for (std::uint64_t i = 0; i < info.left_out; i++) CHECK(std::strstr(trainer.left_out(i), "image 2") != nullptr);
        CHECK(trainer.left_out(info.left_out) == nullptr);

        mdm::trainer resumed = mdm::trainer::resume(device, checkpoint, reader);
        CHECK(resumed.run(10).loss == four.loss);
        fails(mdm::status::io, "none", [&] { mdm::trainer::resume(device, folder + "/none", reader); });
        fails(mdm::status::io, "nowhere", [&] { trainer.save(folder + "/nowhere/at/all"); });

        const mdm::model trained = resumed.model("a test");
        CHECK(std::string(trained.info().description) == "a test" && trained.info().has_backbone == 1);
        // Further from there, on files.
        write_picture(folder + "/drawn.bmp", pixels);
        const std::string path = folder + "/drawn.bmp";
        const std::vector<const char *> paths{path.c_str()};
        mdm::trainer further = mdm::trainer::make(device, small_recipe(), trained, mdm::training_files(paths));
        CHECK(further.run(1).applied == 1 && further.info().left_out == 0);
        CHECK(further.model().info().has_backbone == 1);
        throws(4, [&] { further.run(2, mdm::control([](const mdm::progress &) { throw own_exception{4}; })); });

        mdm::trainer_options wrong = small_recipe();
        wrong.size = 33;
        fails(mdm::status::invalid_argument, "size", [&] { mdm::trainer::make(device, wrong, reader); });
    }
    CHECK(read > 0 && read == released);

    mdm::image_reader never(2, [](std::uint64_t) -> mdm::image_view { throw own_exception{5}; });
    mdm::trainer starved = mdm::trainer::make(device, small_recipe(), never);
    fails(mdm::status::image, "", [&] { starved.run(1); });
    fails(mdm::status::invalid_handle, "NULL", [] { mdm::trainer().run(1); });

    mdm::trainer_options unstable = small_recipe();
    unstable.steps = 40;
    unstable.learning_rate = 1;
    unstable.weight_decay = 1000;
    mdm::image_reader reader(1, [&](std::uint64_t) { return mdm::image_view(pixels, width, height, mdm::pixel_format::grey8); });
    fails(mdm::status::diverged, "diverged at step", [&] { mdm::trainer::make(device, unstable, reader).run(0); });
}

} // namespace

int main(int count, char **arguments) {
    CHECK(count == 2);
    const std::string folder = arguments[1];
    versions();
    {
        mdm::device_options options;
        options.threads = 2;
        const mdm::device device = mdm::device::open("cpu", options);
        const mdm::model backbone = mdm::model::open(folder + "/backbone.safetensors");
        fits(backbone, device, folder);
        callbacks(backbone, device);
        trains(device, folder);
    }
    CHECK(mdm::object_count() == 0);
}
