// mdm_train.hpp without exceptions. Usage: errors FOLDER
#include "train.hpp"

#include <chrono>
#include <thread>

// Stops whatever it watches, but takes longer to say so than the work takes.
static bool stop_late(const mdm::progress &) {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    return false;
}

static void fits(const mdm::model &backbone, const mdm::device &device, const std::string &folder) {
    mdm::error error;
    const std::vector<std::uint8_t> pixels = drawn(), labels = strokes();
    const mdm::image_view image(pixels, width, height, mdm::pixel_format::grey8);
    const mdm::labels_view said(labels, width, height);
    FAILS(mdm::status::invalid_argument, "classes", CHECK(!mdm::fitter::make(backbone, device, mdm::fitter_options(), error)));
    mdm::fitter fitter = mdm::fitter::make(backbone, device, quick_options(), error);
    OK(CHECK(fitter));
    FAILS(mdm::status::invalid_argument, "no image", fitter.set_labels("a", said, {}, error));
    OK(fitter.set_image("a", image, error));
    OK(CHECK(fitter.set_labels("a", said, {}, error).windows > 1));
    FAILS(mdm::status::invalid_argument, "fitted", CHECK(!fitter.model(error)));
    OK(CHECK(fitter.fit({}, error).steps == 60));
    OK(CHECK(fitter.refine(mdm::control([](const mdm::progress &) {}), error).steps == 20));
    FAILS(mdm::status::cancelled, "cancelled", fitter.fit(mdm::control(stop_late), error));
    OK(CHECK(fitter.info(error).heads == 2));
    OK(CHECK(fitter.class_pixels(1, error) > 0));
    FAILS(mdm::status::invalid_argument, "no class 2", CHECK(fitter.class_pixels(2, error) == 0));
    const mdm::model fitted = fitter.model(error);
    OK(CHECK(fitted.info(error).heads == 2));
    OK(mdm::save(fitted, folder + "/errors.safetensors", mdm::part::heads, mdm::stored::as_is, error));
    FAILS(mdm::status::io, "nowhere",
          mdm::save(fitted, folder + "/nowhere/at/all", mdm::part::heads, mdm::stored::as_is, error));
    mdm::tune_options tuning;
    mdm::tune_report went;
    tuning.steps = 1;
    tuning.batch = 1;
    OK(CHECK(fitter.tune(tuning, went, {}, error).info(error).heads == 1 && went.steps == 1));
    FAILS(mdm::status::cancelled, "cancelled", CHECK(!fitter.tune(tuning, went, mdm::control(stop_late), error)));
    tuning.loss = 4;
    FAILS(mdm::status::invalid_argument, "loss", CHECK(!fitter.tune(tuning, went, {}, error)));
    OK(fitter.set_classes(mdm::fitter_options().set_classes(3), error));
    FAILS(mdm::status::invalid_argument, "classes", fitter.set_classes(mdm::fitter_options(), error));
    OK(fitter.remove("a", error));
    FAILS(mdm::status::invalid_argument, "no image", fitter.remove("a", error));
    mdm::feature_options features;
    const std::vector<std::uint32_t> blocks{99};
    FAILS(mdm::status::invalid_argument, "block",
          CHECK(!mdm::fitter::make(backbone, device, quick_options(), features.set_blocks(blocks), error)));
    FAILS(mdm::status::invalid_handle, "NULL", mdm::fitter().fit({}, error));
}

static void trains(const mdm::device &device, const std::string &folder) {
    mdm::error error;
    const std::vector<std::uint8_t> pixels = drawn();
    // An empty view is an image that cannot be had.
    mdm::image_reader reader(2, [&](std::uint64_t index) {
        return index == 0 ? mdm::image_view(pixels, width, height, mdm::pixel_format::grey8) : mdm::image_view();
    });
    const std::string checkpoint = folder + "/errors.checkpoint";
    double whole = 0;
    {
        mdm::trainer stopped = mdm::trainer::make(device, small_recipe(), reader, error);
        FAILS(mdm::status::cancelled, "cancelled", stopped.run(1, mdm::control(stop_late), error));
    }
    {
        mdm::trainer trainer = mdm::trainer::make(device, small_recipe(), reader, error);
        OK(CHECK(trainer.run(2, {}, error).step == 2));
        OK(trainer.save(checkpoint, error));
        FAILS(mdm::status::io, "nowhere", trainer.save(folder + "/nowhere/at/all", error));
        OK(whole = trainer.run(0, mdm::control([](const mdm::progress &) { return true; }), error).loss);
        OK(CHECK(trainer.info(error).step == 4));
        OK(CHECK(trainer.model(nullptr, error).info(error).has_backbone == 1));
    }
    mdm::trainer resumed = mdm::trainer::resume(device, checkpoint, reader, error);
    OK(CHECK(resumed.run(0, {}, error).loss == whole));
    FAILS(mdm::status::io, "none", CHECK(!mdm::trainer::resume(device, folder + "/none", reader, error)));
    const std::vector<const char *> paths{"nowhere/at/all"};
    FAILS(mdm::status::invalid_argument, "nowhere",
          CHECK(!mdm::trainer::make(device, small_recipe(), mdm::training_files(paths), error)));
    FAILS(mdm::status::invalid_handle, "NULL", mdm::trainer().run(1, {}, error));
}

int main(int count, char **arguments) {
    CHECK(count == 2);
    const std::string folder = arguments[1];
    {
        mdm::error error;
        OK(mdm::check_train_abi(error));
        mdm::device_options options;
        options.threads = 2;
        const mdm::device device = mdm::device::open("cpu", options, error);
        const mdm::model backbone = mdm::model::open(folder + "/backbone.safetensors", error);
        OK(CHECK(backbone));
        fits(backbone, device, folder);
        trains(device, folder);
    }
    CHECK(mdm::object_count() == 0);
}
