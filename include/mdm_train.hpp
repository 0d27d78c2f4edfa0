/*
 * libmdm_train for C++17: what mdm_train.h offers, in the manner of mdm.hpp, whose rules for errors, objects, structs and callbacks hold
 * here too. Header only.
 *
 *     mdm::fitter fitter = mdm::fitter::make(backbone, device, mdm::fitter_options().set_classes(2));
 *     fitter.set_image("slide 7", image);
 *     fitter.set_labels("slide 7", mdm::labels_view(labels, width, height));    // whenever a stroke is finished
 *     fitter.refine();
 *     mdm::model model = fitter.model();
 */
#ifndef MDM_TRAIN_HPP
#define MDM_TRAIN_HPP

#include <mdm.hpp>
#include <mdm_train.h>

namespace mdm {

namespace status {
inline constexpr mdm_status diverged = MDM_TRAIN_ERROR_DIVERGED;
} // namespace status

/** Bits of mdm_save_parts. */
namespace part {
inline constexpr mdm_save_parts backbone = MDM_SAVE_BACKBONE;
inline constexpr mdm_save_parts heads = MDM_SAVE_HEADS;
} // namespace part

/** Values of mdm_stored_type. */
namespace stored {
inline constexpr mdm_stored_type as_is = MDM_STORED_AS_IS;
inline constexpr mdm_stored_type f32 = MDM_STORED_F32;
inline constexpr mdm_stored_type f16 = MDM_STORED_F16;
inline constexpr mdm_stored_type bf16 = MDM_STORED_BF16;
} // namespace stored

/** Values of mdm_corruption. */
namespace corruption {
inline constexpr mdm_corruption mask = MDM_CORRUPTION_MASK;
inline constexpr mdm_corruption noise_linear = MDM_CORRUPTION_NOISE_LINEAR;
inline constexpr mdm_corruption noise_cosine = MDM_CORRUPTION_NOISE_COSINE;
} // namespace corruption

/** Values of mdm_loss. */
namespace loss {
inline constexpr mdm_loss as_corruption = MDM_LOSS_DEFAULT;
inline constexpr mdm_loss ssim = MDM_LOSS_SSIM;
inline constexpr mdm_loss mean_square = MDM_LOSS_MEAN_SQUARE;
inline constexpr mdm_loss mean_absolute = MDM_LOSS_MEAN_ABSOLUTE;
} // namespace loss

/** Values of mdm_schedule. */
namespace schedule {
inline constexpr mdm_schedule constant = MDM_SCHEDULE_CONSTANT;
inline constexpr mdm_schedule linear = MDM_SCHEDULE_LINEAR;
inline constexpr mdm_schedule cosine = MDM_SCHEDULE_COSINE;
} // namespace schedule

/** Values of mdm_tune_loss. */
namespace tune_loss {
inline constexpr mdm_tune_loss standard = MDM_TUNE_LOSS_DEFAULT;
inline constexpr mdm_tune_loss cross_entropy = MDM_TUNE_LOSS_CROSS_ENTROPY;
inline constexpr mdm_tune_loss cross_entropy_and_dice = MDM_TUNE_LOSS_CROSS_ENTROPY_AND_DICE;
inline constexpr mdm_tune_loss boundary_weighted = MDM_TUNE_LOSS_BOUNDARY_WEIGHTED;
} // namespace tune_loss

/** The label of a pixel of which nobody said what it is. */
inline constexpr std::uint8_t unlabelled = MDM_UNLABELLED;

using label_report = detail::sized<mdm_label_report>;
using fit_report = detail::sized<mdm_fit_report>;
using fitter_info = detail::sized<mdm_fitter_info>;
using tune_options = detail::sized<mdm_tune_options>;
using tune_report = detail::sized<mdm_tune_report>;
using trainer_options = detail::sized<mdm_trainer_options>;
using step_report = detail::sized<mdm_step_report>;
using trainer_info = detail::sized<mdm_trainer_info>;

/** Version of the binary interface of training at run time. */
inline std::uint32_t train_abi_version() noexcept { return mdm_train_abi_version(); }

/** Checks that the library has all that this header and mdm.hpp know; call it once at the start. */
inline void check_train_abi(error &failure) noexcept {
    check_abi(failure);
    if (!failure) failure.from([](mdm_error **place) { return mdm_train_check_abi(MDM_TRAIN_ABI_VERSION, place); });
}

/** Writes a model file. `parts` are mdm::part::backbone, mdm::part::heads or both, `as` is one of mdm::stored. */
inline void save(const model &of, utf8 path, mdm_save_parts parts, mdm_stored_type as, error &failure) noexcept {
    failure.from([&](mdm_error **place) { return mdm_model_save(of.get(), path.c_str(), parts, as, place); });
}

#if MDM_HPP_EXCEPTIONS
inline void check_train_abi() {
    detail::checked([](error &failure) { check_train_abi(failure); });
}
inline void save(const model &of, utf8 path, mdm_save_parts parts = MDM_SAVE_BACKBONE | MDM_SAVE_HEADS,
                 mdm_stored_type as = MDM_STORED_AS_IS) {
    detail::checked([&](error &failure) { save(of, path, parts, as, failure); });
}
#endif

/** Labels of 8 or 16 bits, [height][width]; they must outlive the view. row_stride is as in mdm_labels. */
class labels_view : public detail::sized<mdm_labels> {
public:
    labels_view() noexcept = default;
    labels_view(span<const std::uint8_t> of, std::uint32_t columns, std::uint32_t rows) noexcept
        : labels_view(of.data(), of.size_bytes(), columns, rows, MDM_LABEL_U8) {}
    labels_view(span<const std::uint16_t> of, std::uint32_t columns, std::uint32_t rows) noexcept
        : labels_view(of.data(), of.size_bytes(), columns, rows, MDM_LABEL_U16) {}

private:
    labels_view(const void *data, std::size_t size, std::uint32_t columns, std::uint32_t rows,
                mdm_label_type type) noexcept {
        labels = data;
        labels_size = size;
        width = columns;
        height = rows;
        label_type = type;
    }
};

/** How heads are fitted. Members that are not set here are as in mdm_fitter_options. */
class fitter_options : public detail::sized<mdm_fitter_options> {
public:
    /** Their number. */
    fitter_options &set_classes(std::uint32_t count) noexcept {
        classes = count;
        return *this;
    }
    /** Their names, which also say how many there are. They must outlive the options. */
    fitter_options &set_classes(span<const char *const> names) noexcept {
        class_names = names.data();
        return set_classes(static_cast<std::uint32_t>(names.size()));
    }
    /** Red, green and blue of each class; they must outlive the options. */
    fitter_options &set_class_colours(const std::uint8_t *colours) noexcept {
        class_colours = colours;
        return *this;
    }
};

/** Fits heads on labels that come and go, for one thread at a time. */
class fitter : public detail::handle<mdm_fitter, mdm_fitter_free> {
public:
    using handle::handle;

    /** Makes a fitter for heads on the features that the model's own are for. */
    static fitter make(const mdm::model &with, const device &on, const mdm_fitter_options &options,
                       error &failure) noexcept {
        return make(with, on, options, nullptr, failure);
    }
    /** The same for other features. */
    static fitter make(const mdm::model &with, const device &on, const mdm_fitter_options &options,
                       const mdm_feature_options &of, error &failure) noexcept {
        return make(with, on, options, &of, failure);
    }
    /** Keeps a copy of an image under a name. */
    void set_image(utf8 name, const mdm_image &image, error &failure) noexcept {
        failure.from([&](mdm_error **place) { return mdm_fitter_set_image(get(), name.c_str(), &image, place); });
    }
    /** Says what the pixels of an image are, instead of what was said before. `watched` may be {}. */
    template <class Progress = detail::nothing>
    label_report set_labels(utf8 name, const mdm_labels &labels, control<Progress> watched, error &failure) {
        label_report told;
        detail::caught thrown;
        watched.run(thrown, failure, [&](const mdm_run *run, mdm_error **place) {
            return mdm_fitter_set_labels(get(), name.c_str(), &labels, run, &told, place);
        });
        return told;
    }
    /** Forgets an image and its labels. */
    void remove(utf8 name, error &failure) noexcept {
        failure.from([&](mdm_error **place) { return mdm_fitter_remove(get(), name.c_str(), place); });
    }
    /** Changes names, colours or number of the classes, as the options have them; nothing else of these is used. */
    void set_classes(const mdm_fitter_options &of, error &failure) noexcept {
        failure.from([&](mdm_error **place) {
            return mdm_fitter_set_classes(get(), of.class_names, of.class_colours, of.classes, place);
        });
    }
    /** What the fitter holds. */
    fitter_info info(error &failure) const noexcept {
        return detail::tell<fitter_info>(failure, [&](mdm_fitter_info *info, mdm_error **place) {
            return mdm_fitter_get_info(get(), info, place);
        });
    }
    /** How many pixels are labelled as a class. */
    std::uint64_t class_pixels(std::uint32_t index, error &failure) const noexcept {
        std::uint64_t pixels = 0;
        failure.from([&](mdm_error **place) { return mdm_fitter_class_pixels(get(), index, &pixels, place); });
        return pixels;
    }
    /** Fits heads anew on all labels. `watched` may be {}. */
    template <class Progress = detail::nothing> fit_report fit(control<Progress> watched, error &failure) {
        return run(mdm_fitter_fit, watched, failure);
    }
    /** Goes on with the last heads for a few steps. `watched` may be {}. */
    template <class Progress = detail::nothing> fit_report refine(control<Progress> watched, error &failure) {
        return run(mdm_fitter_refine, watched, failure);
    }
    /** Tunes a copy of the backbone, with a head of its own, on all labels; how that went is put into `told`. `watched` may be {}. */
    template <class Progress = detail::nothing>
    mdm::model tune(const mdm_tune_options &options, tune_report &told, control<Progress> watched, error &failure) {
        mdm_model *made = nullptr;
        detail::caught thrown;
        watched.run(thrown, failure, [&](const mdm_run *run, mdm_error **place) {
            return mdm_fitter_tune(get(), &options, run, &told, &made, place);
        });
        return mdm::model(made);
    }
    /** A model of the backbone and the last heads. */
    mdm::model model(error &failure) const noexcept {
        return detail::make<mdm::model, mdm_model>(failure, [&](mdm_model **made, mdm_error **place) {
            return mdm_fitter_model(get(), made, place);
        });
    }

#if MDM_HPP_EXCEPTIONS
    static fitter make(const mdm::model &with, const device &on, const mdm_fitter_options &options) {
        return detail::checked([&](error &failure) { return make(with, on, options, failure); });
    }
    static fitter make(const mdm::model &with, const device &on, const mdm_fitter_options &options,
                       const mdm_feature_options &of) {
        return detail::checked([&](error &failure) { return make(with, on, options, of, failure); });
    }
    void set_image(utf8 name, const mdm_image &image) {
        detail::checked([&](error &failure) { set_image(name, image, failure); });
    }
    template <class Progress = detail::nothing>
    label_report set_labels(utf8 name, const mdm_labels &labels, control<Progress> watched = {}) {
        return detail::checked([&](error &failure) { return set_labels(name, labels, std::move(watched), failure); });
    }
    void remove(utf8 name) {
        detail::checked([&](error &failure) { remove(name, failure); });
    }
    void set_classes(const mdm_fitter_options &of) {
        detail::checked([&](error &failure) { set_classes(of, failure); });
    }
    fitter_info info() const {
        return detail::checked([&](error &failure) { return info(failure); });
    }
    std::uint64_t class_pixels(std::uint32_t index) const {
        return detail::checked([&](error &failure) { return class_pixels(index, failure); });
    }
    template <class Progress = detail::nothing> fit_report fit(control<Progress> watched = {}) {
        return detail::checked([&](error &failure) { return fit(std::move(watched), failure); });
    }
    template <class Progress = detail::nothing> fit_report refine(control<Progress> watched = {}) {
        return detail::checked([&](error &failure) { return refine(std::move(watched), failure); });
    }
    template <class Progress = detail::nothing>
    mdm::model tune(const mdm_tune_options &options, tune_report &told, control<Progress> watched = {}) {
        return detail::checked([&](error &failure) { return tune(options, told, std::move(watched), failure); });
    }
    mdm::model tune(const mdm_tune_options &options = tune_options()) {
        tune_report told;
        return tune(options, told);
    }
    mdm::model model() const {
        return detail::checked([&](error &failure) { return model(failure); });
    }
#endif

private:
    static fitter make(const mdm::model &with, const device &on, const mdm_fitter_options &options,
                       const mdm_feature_options *of, error &failure) noexcept {
        return detail::make<fitter, mdm_fitter>(failure, [&](mdm_fitter **made, mdm_error **place) {
            return mdm_fitter_new(with.get(), on.get(), of, &options, made, place);
        });
    }
    template <class Run, class Progress> fit_report run(Run *function, control<Progress> &watched, error &failure) {
        fit_report told;
        detail::caught thrown;
        watched.run(thrown, failure, [&](const mdm_run *run, mdm_error **place) {
            return function(get(), run, &told, place);
        });
        return told;
    }
};

/** Files and folders of images to learn from; microns_per_pixel is as in mdm_training_images. */
class training_files : public detail::sized<mdm_training_images> {
public:
    /** UTF-8; they must stay until a trainer was made. */
    explicit training_files(span<const char *const> all) noexcept {
        paths = all.data();
        count = all.size();
    }
};

/**
 * Images to learn from that are read by a callback, `mdm::image_view (std::uint64_t index)`, on threads of the library, one at a time
 * unless `concurrent` is set. What it throws, or an empty view, leaves the image out of the run. Pixels must stay until a
 * second callback, `void (std::uint64_t index, const mdm_image &)`, is told that they are not used any more, or for good where there is
 * none; what that throws is dropped.
 *
 * It must outlive the trainers that read from it, and cannot be moved. Other members are as in mdm_training_images.
 *
 *     mdm::image_reader plates(5000, [&](std::uint64_t index) { return mdm::image_view(plate[index], 512, 512, format); });
 */
template <class Read, class Release = detail::nothing> class image_reader : public detail::sized<mdm_training_images> {
public:
    explicit image_reader(std::uint64_t images, Read read_image, Release release_image = {})
        : read_(std::move(read_image)), release_(std::move(release_image)) {
        this->count = images;
        this->user_data = this;
        this->read = call_read;
        if constexpr (!std::is_same_v<Release, detail::nothing>) this->release = call_release;
    }
    image_reader(const image_reader &) = delete;
    image_reader &operator=(const image_reader &) = delete;

private:
    static mdm_status call_read(void *user_data, std::uint64_t index, mdm_image *image) noexcept {
        detail::caught dropped;
        return dropped.guard([&] {
            const image_view view = static_cast<image_reader *>(user_data)->read_(index);
            *image = view;
            return MDM_OK;
        });
    }
    static void call_release(void *user_data, std::uint64_t index, const mdm_image *image) noexcept {
        detail::caught dropped;
        dropped.guard([&] {
            static_cast<image_reader *>(user_data)->release_(index, *image);
            return MDM_OK;
        });
    }

    Read read_;
    Release release_;
};

/** Trains a backbone on images without labels, for one thread at a time. */
class trainer : public detail::handle<mdm_trainer, mdm_trainer_free> {
public:
    using handle::handle;

    /**
     * Prepares a run. `images` are training_files or an image_reader; `start` is a model whose backbone is trained further, empty to
     * start with random parameters.
     */
    template <class Images>
    static trainer make(const device &on, const mdm_trainer_options &options, const mdm::model &start, Images &&images,
                        error &failure) noexcept {
        stays<Images>();
        return detail::make<trainer, mdm_trainer>(failure, [&](mdm_trainer **made, mdm_error **place) {
            return mdm_trainer_new(on.get(), &options, start.get(), &images, made, place);
        });
    }
    template <class Images>
    static trainer make(const device &on, const mdm_trainer_options &options, Images &&images, error &failure) noexcept {
        return make(on, options, mdm::model(), std::forward<Images>(images), failure);
    }
    /** Goes on with a run from a checkpoint. */
    template <class Images>
    static trainer resume(const device &on, utf8 checkpoint, Images &&images, error &failure) noexcept {
        stays<Images>();
        return detail::make<trainer, mdm_trainer>(failure, [&](mdm_trainer **made, mdm_error **place) {
            return mdm_trainer_resume(on.get(), checkpoint.c_str(), &images, made, place);
        });
    }
    /** Runs steps, 0 for all that are left, and tells of the last. `watched` may be {}. */
    template <class Progress = detail::nothing>
    step_report run(std::uint64_t steps, control<Progress> watched, error &failure) {
        step_report told;
        detail::caught thrown;
        watched.run(thrown, failure, [&](const mdm_run *run, mdm_error **place) {
            return mdm_trainer_run(get(), steps, run, &told, place);
        });
        return told;
    }
    /** How far it has come. */
    trainer_info info(error &failure) const noexcept {
        return detail::tell<trainer_info>(failure, [&](mdm_trainer_info *info, mdm_error **place) {
            return mdm_trainer_get_info(get(), info, place);
        });
    }
    /** Which image was unusable, and why; NULL beyond those that info told of. The string belongs to the trainer. */
    const char *left_out(std::uint64_t index) const noexcept { return mdm_trainer_left_out(get(), index); }
    /** Writes a checkpoint. */
    void save(utf8 path, error &failure) noexcept {
        failure.from([&](mdm_error **place) { return mdm_trainer_save(get(), path.c_str(), place); });
    }
    /** A model of the backbone as it is now. The description is free words, or NULL. */
    mdm::model model(utf8 description, error &failure) noexcept {
        return detail::make<mdm::model, mdm_model>(failure, [&](mdm_model **made, mdm_error **place) {
            return mdm_trainer_model(get(), description.c_str(), made, place);
        });
    }

#if MDM_HPP_EXCEPTIONS
    template <class Images>
    static trainer make(const device &on, const mdm_trainer_options &options, const mdm::model &start, Images &&images) {
        return detail::checked([&](error &failure) {
            return make(on, options, start, std::forward<Images>(images), failure);
        });
    }
    template <class Images> static trainer make(const device &on, const mdm_trainer_options &options, Images &&images) {
        return detail::checked([&](error &failure) { return make(on, options, std::forward<Images>(images), failure); });
    }
    template <class Images> static trainer resume(const device &on, utf8 checkpoint, Images &&images) {
        return detail::checked([&](error &failure) {
            return resume(on, checkpoint, std::forward<Images>(images), failure);
        });
    }
    template <class Progress = detail::nothing> step_report run(std::uint64_t steps, control<Progress> watched = {}) {
        return detail::checked([&](error &failure) { return run(steps, std::move(watched), failure); });
    }
    trainer_info info() const {
        return detail::checked([&](error &failure) { return info(failure); });
    }
    void save(utf8 path) {
        detail::checked([&](error &failure) { save(path, failure); });
    }
    mdm::model model(utf8 description = nullptr) {
        return detail::checked([&](error &failure) { return model(description, failure); });
    }
#endif

private:
    template <class Images> static constexpr void stays() noexcept {
        static_assert(std::is_base_of_v<mdm_training_images, std::decay_t<Images>>, "training_files or an image_reader");
        static_assert(std::is_lvalue_reference_v<Images> || std::is_same_v<Images, training_files>,
                      "the trainer keeps the image_reader, which must outlive it");
    }
};

} // namespace mdm

#endif
