/*
 * libmdm for C++17: what mdm.h offers, with objects that free themselves. Header only; it costs nothing beyond the calls of
 * mdm.h, whose comments say what each function does, takes and returns, and which threads may call it.
 *
 *     mdm::model model = mdm::model::open("cells.safetensors");
 *     mdm::device device = mdm::device::open("auto");
 *     mdm::segmenter segmenter = mdm::segmenter::make(model, device);
 *     std::vector<std::uint8_t> labels(std::size_t{width} * height);
 *     segmenter.run(mdm::image_view(pixels, width, height, mdm::pixel_format::rgb8), mdm::result_view(labels));
 *
 * Errors. A function that can fail is there twice. Without an mdm::error it throws an mdm::exception. With one as its last
 * argument it does not: it sets the error, or clears it, and what it returns after a failure is empty. Compiled without
 * exceptions, only the second kind is there.
 *
 * Objects can be moved and not copied. They begin empty, are empty once moved from, and an empty one gives
 * MDM_ERROR_INVALID_HANDLE. get() is the handle of mdm.h, which the object keeps owning; release() hands it over; the
 * constructor from a handle takes it over.
 *
 * Structs are those of mdm.h with their size set and everything else zero. An object that keeps pointers to the caller's memory is
 * called a view.
 *
 * Callbacks are whatever can be called: lambdas, functions, objects. They return nothing; or a bool, false to stop the run with
 * MDM_ERROR_CANCELLED; or an mdm_status as mdm.h has it. What a callback throws ends the run and comes out of the function that
 * was called, whether that was given an mdm::error or not; it never passes through the library.
 */
#ifndef MDM_HPP
#define MDM_HPP

#include <mdm.h>

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <type_traits>
#include <utility>

#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
#define MDM_HPP_EXCEPTIONS 1
#include <exception>
#include <stdexcept>
#else
#define MDM_HPP_EXCEPTIONS 0
#endif

namespace mdm {

/** Values of mdm_status. */
namespace status {
inline constexpr mdm_status ok = MDM_OK;
inline constexpr mdm_status invalid_argument = MDM_ERROR_INVALID_ARGUMENT;
inline constexpr mdm_status invalid_handle = MDM_ERROR_INVALID_HANDLE;
inline constexpr mdm_status abi = MDM_ERROR_ABI;
inline constexpr mdm_status io = MDM_ERROR_IO;
inline constexpr mdm_status model = MDM_ERROR_MODEL;
inline constexpr mdm_status tensor = MDM_ERROR_TENSOR;
inline constexpr mdm_status image = MDM_ERROR_IMAGE;
inline constexpr mdm_status out_of_memory = MDM_ERROR_OUT_OF_MEMORY;
inline constexpr mdm_status device = MDM_ERROR_DEVICE;
inline constexpr mdm_status device_lost = MDM_ERROR_DEVICE_LOST;
inline constexpr mdm_status cancelled = MDM_ERROR_CANCELLED;
inline constexpr mdm_status busy = MDM_ERROR_BUSY;
inline constexpr mdm_status buffer_too_small = MDM_ERROR_BUFFER_TOO_SMALL;
inline constexpr mdm_status callback = MDM_ERROR_CALLBACK;
inline constexpr mdm_status internal = MDM_ERROR_INTERNAL;
} // namespace status

/** Values of mdm_log_level. */
namespace log_level {
inline constexpr mdm_log_level off = MDM_LOG_OFF;
inline constexpr mdm_log_level error = MDM_LOG_ERROR;
inline constexpr mdm_log_level warning = MDM_LOG_WARNING;
inline constexpr mdm_log_level info = MDM_LOG_INFO;
inline constexpr mdm_log_level debug = MDM_LOG_DEBUG;
} // namespace log_level

/** Values of mdm_device_kind. */
namespace device_kind {
inline constexpr mdm_device_kind cpu = MDM_DEVICE_CPU;
inline constexpr mdm_device_kind discrete_gpu = MDM_DEVICE_DISCRETE_GPU;
inline constexpr mdm_device_kind integrated_gpu = MDM_DEVICE_INTEGRATED_GPU;
inline constexpr mdm_device_kind virtual_gpu = MDM_DEVICE_VIRTUAL_GPU;
inline constexpr mdm_device_kind software_gpu = MDM_DEVICE_SOFTWARE_GPU;
inline constexpr mdm_device_kind other_gpu = MDM_DEVICE_OTHER_GPU;
} // namespace device_kind

/** Values of mdm_precision. */
namespace precision {
inline constexpr mdm_precision automatic = MDM_PRECISION_AUTO;
inline constexpr mdm_precision f32 = MDM_PRECISION_F32;
inline constexpr mdm_precision f16 = MDM_PRECISION_F16;
inline constexpr mdm_precision bf16 = MDM_PRECISION_BF16;
} // namespace precision

/** Values of mdm_pixel_format. */
namespace pixel_format {
inline constexpr mdm_pixel_format grey8 = MDM_PIXEL_GREY8;
inline constexpr mdm_pixel_format grey16 = MDM_PIXEL_GREY16;
inline constexpr mdm_pixel_format grey_f32 = MDM_PIXEL_GREY_F32;
inline constexpr mdm_pixel_format rgb8 = MDM_PIXEL_RGB8;
inline constexpr mdm_pixel_format rgb16 = MDM_PIXEL_RGB16;
inline constexpr mdm_pixel_format rgb_f32 = MDM_PIXEL_RGB_F32;
inline constexpr mdm_pixel_format rgba8 = MDM_PIXEL_RGBA8;
inline constexpr mdm_pixel_format bgra8 = MDM_PIXEL_BGRA8;
inline constexpr mdm_pixel_format rgba16 = MDM_PIXEL_RGBA16;
inline constexpr mdm_pixel_format grey_i16 = MDM_PIXEL_GREY_I16;
inline constexpr mdm_pixel_format grey_u32 = MDM_PIXEL_GREY_U32;
inline constexpr mdm_pixel_format grey_i32 = MDM_PIXEL_GREY_I32;
inline constexpr mdm_pixel_format grey_f16 = MDM_PIXEL_GREY_F16;
inline constexpr mdm_pixel_format grey_f64 = MDM_PIXEL_GREY_F64;
inline constexpr mdm_pixel_format rgb_i16 = MDM_PIXEL_RGB_I16;
inline constexpr mdm_pixel_format rgb_u32 = MDM_PIXEL_RGB_U32;
inline constexpr mdm_pixel_format rgb_i32 = MDM_PIXEL_RGB_I32;
inline constexpr mdm_pixel_format rgb_f16 = MDM_PIXEL_RGB_F16;
inline constexpr mdm_pixel_format rgb_f64 = MDM_PIXEL_RGB_F64;
} // namespace pixel_format

/** Values of mdm_range: how the stored values are found that the network sees as black and white. */
namespace range {
inline constexpr mdm_range as_model = MDM_RANGE_AS_MODEL;
inline constexpr mdm_range type = MDM_RANGE_TYPE;
inline constexpr mdm_range declared = MDM_RANGE_DECLARED;
inline constexpr mdm_range fixed = MDM_RANGE_FIXED;
inline constexpr mdm_range percentile = MDM_RANGE_PERCENTILE;
} // namespace range

/** Bits of mdm_intensity_warnings. */
namespace intensities {
inline constexpr mdm_intensity_warnings narrow = MDM_INTENSITIES_NARROW;
inline constexpr mdm_intensity_warnings outside = MDM_INTENSITIES_OUTSIDE;
inline constexpr mdm_intensity_warnings no_contrast = MDM_INTENSITIES_NO_CONTRAST;
} // namespace intensities

/** Values of mdm_layout. */
namespace layout {
inline constexpr mdm_layout interleaved = MDM_LAYOUT_INTERLEAVED;
inline constexpr mdm_layout planar = MDM_LAYOUT_PLANAR;
} // namespace layout

/** Values of mdm_label_type. */
namespace label_type {
inline constexpr mdm_label_type u8 = MDM_LABEL_U8;
inline constexpr mdm_label_type u16 = MDM_LABEL_U16;
} // namespace label_type

/** Values of mdm_scaling. */
namespace scaling {
inline constexpr mdm_scaling rescaled = MDM_SCALING_RESCALED;
inline constexpr mdm_scaling close = MDM_SCALING_CLOSE;
inline constexpr mdm_scaling image_unknown = MDM_SCALING_IMAGE_UNKNOWN;
inline constexpr mdm_scaling model_unknown = MDM_SCALING_MODEL_UNKNOWN;
} // namespace scaling

/** Values of mdm_combine. */
namespace combine {
inline constexpr mdm_combine mean = MDM_COMBINE_MEAN;
inline constexpr mdm_combine vote = MDM_COMBINE_VOTE;
} // namespace combine

/** Values of mdm_corrupt. */
namespace corrupt {
inline constexpr mdm_corrupt as_model = MDM_CORRUPT_AS_MODEL;
inline constexpr mdm_corrupt yes = MDM_CORRUPT_YES;
inline constexpr mdm_corrupt no = MDM_CORRUPT_NO;
} // namespace corrupt

/** Bits of mdm_outputs. */
namespace output {
inline constexpr mdm_outputs probabilities = MDM_OUTPUT_PROBABILITIES;
inline constexpr mdm_outputs uncertainty = MDM_OUTPUT_UNCERTAINTY;
} // namespace output

/** Values of mdm_normalise. */
namespace normalise {
inline constexpr mdm_normalise as_model = MDM_NORMALISE_AS_MODEL;
inline constexpr mdm_normalise yes = MDM_NORMALISE_YES;
inline constexpr mdm_normalise no = MDM_NORMALISE_NO;
} // namespace normalise

/** An overlap that says that windows share nothing. */
inline constexpr double overlap_none = MDM_OVERLAP_NONE;

/** Values that belong to somebody else. std::span can be made from it, and it from whatever has data() and size(). */
template <class T> class span {
public:
    using element_type = T;
    using value_type = std::remove_cv_t<T>;
    using size_type = std::size_t;
    using iterator = T *;

    constexpr span() noexcept = default;
    constexpr span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
    template <class Values, class = std::enable_if_t<
                                !std::is_same_v<std::decay_t<Values>, span> &&
                                std::is_convertible_v<decltype(std::data(std::declval<Values &>())), T *>>>
    constexpr span(Values &&values) noexcept : data_(std::data(values)), size_(std::size(values)) {}

    constexpr T *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr std::size_t size_bytes() const noexcept { return size_ * sizeof(T); }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr T &operator[](std::size_t index) const noexcept { return data_[index]; }
    constexpr T *begin() const noexcept { return data_; }
    constexpr T *end() const noexcept { return data_ + size_; }

private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};

/** UTF-8 text that is terminated by a zero: char pointers and strings, those of char8_t where there are any, or NULL. */
class utf8 {
public:
    utf8(std::nullptr_t) noexcept {}
    utf8(const char *text) noexcept : text_(text) {}
    utf8(const std::string &text) noexcept : text_(text.c_str()) {}
#if defined(__cpp_lib_char8_t)
    utf8(const char8_t *text) noexcept : text_(reinterpret_cast<const char *>(text)) {}
    utf8(const std::u8string &text) noexcept : utf8(text.c_str()) {}
#endif
    const char *c_str() const noexcept { return text_; }

private:
    const char *text_ = nullptr;
};

namespace detail {

/** A struct of mdm.h whose size is set. */
template <class Struct> struct sized : Struct {
    constexpr sized() noexcept : Struct{} { this->struct_size = sizeof(Struct); }
};

/** Owns an object of the library. */
template <class Object, void (*Free)(Object *)> class handle {
public:
    handle() noexcept = default;
    explicit handle(Object *object) noexcept : object_(object) {}
    handle(handle &&other) noexcept : object_(other.release()) {}
    handle &operator=(handle &&other) noexcept {
        reset(other.release());
        return *this;
    }
    ~handle() { reset(); }

    /** Whether there is an object. */
    explicit operator bool() const noexcept { return object_ != nullptr; }
    Object *get() const noexcept { return object_; }
    Object *release() noexcept { return std::exchange(object_, nullptr); }
    void reset(Object *object = nullptr) noexcept {
        if (Object *old = std::exchange(object_, object)) Free(old);
    }

private:
    Object *object_ = nullptr;
};

} // namespace detail

using device_options = detail::sized<mdm_device_options>;
using device_info = detail::sized<mdm_device_info>;
using model_info = detail::sized<mdm_model_info>;
using class_info = detail::sized<mdm_class_info>;
using block_info = detail::sized<mdm_block_info>;
using segment_options = detail::sized<mdm_segment_options>;
using result_size = detail::sized<mdm_result_size>;
using report = detail::sized<mdm_report>;
using features_info = detail::sized<mdm_features_info>;
using window_info = detail::sized<mdm_window_info>;
using map = detail::sized<mdm_map>;
using progress = mdm_progress;
using region = mdm_region;
using level = mdm_level;
using band = mdm_band;

/** What went wrong, if anything did. */
class error {
public:
    error() noexcept = default;

    /** Whether something went wrong. */
    explicit operator bool() const noexcept { return status_ != MDM_OK; }
    /** What the call returned, which mdm_error_status tells of a bare error object too. */
    mdm_status status() const noexcept { return status_; }
    /** One line of UTF-8, never NULL, valid until the error is changed. */
    const char *message() const noexcept { return mdm_error_message(handle_.get()); }
    /** Makes a call of mdm.h, `mdm_status (mdm_error **)`, and becomes its error. */
    template <class Call> void from(Call &&call) {
        mdm_error *made = nullptr;
        status_ = call(&made);
        handle_.reset(made);
    }

private:
    detail::handle<mdm_error, mdm_error_free> handle_;
    mdm_status status_ = MDM_OK;
};

#if MDM_HPP_EXCEPTIONS
/** A call failed. what() is the message of the error. */
class exception : public std::runtime_error {
public:
    exception(mdm_status status, const char *message) : std::runtime_error(message), status_(status) {}
    mdm_status status() const noexcept { return status_; }

private:
    mdm_status status_;
};
#endif

namespace detail {

#if MDM_HPP_EXCEPTIONS
/** Throws where a call sets the error that it is given. */
template <class Call> auto checked(Call &&call) {
    error failure;
    if constexpr (std::is_void_v<decltype(call(failure))>) {
        call(failure);
        if (failure) throw exception(failure.status(), failure.message());
    } else {
        auto value = call(failure);
        if (failure) throw exception(failure.status(), failure.message());
        return value;
    }
}
#endif

/** Makes an object with a call of mdm.h, `mdm_status (Object **, mdm_error **)`. */
template <class Made, class Object, class Call> Made make(error &failure, Call &&call) {
    Object *object = nullptr;
    failure.from([&](mdm_error **place) { return call(&object, place); });
    return Made(object);
}

/** Has a struct filled in by a call of mdm.h, `mdm_status (Struct *, mdm_error **)`. */
template <class Struct, class Call> Struct tell(error &failure, Call &&call) {
    Struct told;
    failure.from([&](mdm_error **place) { return call(&told, place); });
    return told;
}

/** Keeps what callbacks throw until the call that they belong to has returned. */
class caught {
public:
    template <class Function> mdm_status guard(Function &&function) noexcept {
#if MDM_HPP_EXCEPTIONS
        try {
            return function();
        } catch (...) {
            if (!exception_) exception_ = std::current_exception();
            return MDM_ERROR_CALLBACK;
        }
#else
        return function();
#endif
    }
    void rethrow() const {
#if MDM_HPP_EXCEPTIONS
        if (exception_) std::rethrow_exception(exception_);
#endif
    }

#if MDM_HPP_EXCEPTIONS
private:
    std::exception_ptr exception_;
#endif
};

/** A callback with the place for what it throws: the user data of the functions below. */
template <class Function> struct bound {
    Function &function;
    caught &thrown;
};

template <class Function, class Argument> mdm_status answer(Function &function, const Argument &argument) {
    using returned = std::decay_t<std::invoke_result_t<Function &, const Argument &>>;
    if constexpr (std::is_void_v<returned>) {
        function(argument);
        return MDM_OK;
    } else if constexpr (std::is_same_v<returned, bool>) {
        return function(argument) ? MDM_OK : MDM_ERROR_CANCELLED;
    } else {
        static_assert(std::is_same_v<returned, mdm_status>, "a callback returns void, bool or mdm_status");
        return function(argument);
    }
}

template <class Function, class Argument>
mdm_status call_back(void *user_data, const Argument *argument) noexcept {
    auto &to = *static_cast<bound<Function> *>(user_data);
    return to.thrown.guard([&] { return answer(to.function, *argument); });
}

/** In place of a progress callback. */
struct nothing {};

} // namespace detail

/** The library's version at run time. */
inline const char *version() noexcept { return mdm_version(); }

/** Version of the binary interface at run time. */
inline std::uint32_t abi_version() noexcept { return mdm_abi_version(); }

/** Checks that the library has all that this header knows; call it once at the start. */
inline void check_abi(error &failure) noexcept {
    failure.from([](mdm_error **place) { return mdm_check_abi(MDM_ABI_VERSION, place); });
}

/** A name of a status, for example "MDM_ERROR_IO". */
inline const char *status_name(mdm_status status) noexcept { return mdm_status_name(status); }

/** Objects of all kinds that were made and not yet freed. */
inline std::size_t object_count() noexcept { return mdm_object_count(); }

#if MDM_HPP_EXCEPTIONS
inline void check_abi() {
    detail::checked([](error &failure) { check_abi(failure); });
}
#endif

/**
 * Receives the library's messages as long as it lives: `void (mdm_log_level, const char *)`, called on any thread, possibly on
 * several at a time. What it throws is dropped, because nobody called it.
 *
 * There is one receiver in a process: a new one takes the place of the last, and silence follows when any is destroyed. It can
 * not be moved, and must not be destroyed by its own callback.
 */
template <class Function> class log_handler {
public:
    /** Becomes the receiver of messages that are as important as `least` or more. */
    log_handler(mdm_log_level least, Function function, error &failure) : function_(std::move(function)) {
        failure.from([&](mdm_error **place) { return mdm_log_set(receive, least, this, place); });
        set_ = !failure;
    }
#if MDM_HPP_EXCEPTIONS
    log_handler(mdm_log_level least, Function function) : function_(std::move(function)) {
        detail::checked([&](error &failure) {
            failure.from([&](mdm_error **place) { return mdm_log_set(receive, least, this, place); });
        });
        set_ = true;
    }
#endif
    log_handler(const log_handler &) = delete;
    log_handler &operator=(const log_handler &) = delete;
    ~log_handler() {
        if (set_) mdm_log_set(nullptr, MDM_LOG_OFF, nullptr, nullptr);
    }

private:
    static void receive(void *user_data, mdm_log_level importance, const char *message) noexcept {
        detail::caught dropped;
        dropped.guard([&] {
            static_cast<log_handler *>(user_data)->function_(importance, message);
            return MDM_OK;
        });
    }

    Function function_;
    bool set_ = false;
};

/** The devices of this machine at the time of the call. */
class device_list : public detail::handle<mdm_device_list, mdm_device_list_free> {
public:
    using handle::handle;

    static device_list make(error &failure) noexcept {
        return detail::make<device_list, mdm_device_list>(failure, mdm_device_list_new);
    }
    std::size_t size() const noexcept { return mdm_device_list_count(get()); }
    /** What is known of a device; the strings belong to the list. */
    device_info info(std::size_t index, error &failure) const noexcept {
        return detail::tell<device_info>(failure, [&](mdm_device_info *info, mdm_error **place) {
            return mdm_device_list_info(get(), index, info, place);
        });
    }

#if MDM_HPP_EXCEPTIONS
    static device_list make() {
        return detail::checked([](error &failure) { return make(failure); });
    }
    device_info info(std::size_t index) const {
        return detail::checked([&](error &failure) { return info(index, failure); });
    }
#endif
};

/** A device that was chosen. */
class device : public detail::handle<mdm_device, mdm_device_free> {
public:
    using handle::handle;

    /** "auto", "gpu", "cpu", or a number, a name or a part of a name from the list. */
    static device open(utf8 choice, const mdm_device_options &options, error &failure) noexcept {
        return detail::make<device, mdm_device>(failure, [&](mdm_device **made, mdm_error **place) {
            return mdm_device_open(choice.c_str(), &options, made, place);
        });
    }
    static device open(utf8 choice, error &failure) noexcept { return open(choice, device_options(), failure); }
    /** What was chosen; the strings belong to the device. */
    device_info info(error &failure) const noexcept {
        return detail::tell<device_info>(failure, [&](mdm_device_info *info, mdm_error **place) {
            return mdm_device_get_info(get(), info, place);
        });
    }
    /** Why this device was chosen; the string belongs to the device. */
    const char *reason() const noexcept { return mdm_device_reason(get()); }

#if MDM_HPP_EXCEPTIONS
    static device open(utf8 choice, const mdm_device_options &options = device_options()) {
        return detail::checked([&](error &failure) { return open(choice, options, failure); });
    }
    device_info info() const {
        return detail::checked([&](error &failure) { return info(failure); });
    }
#endif
};

/** A model, which any number of threads and segmenters may share. */
class model : public detail::handle<mdm_model, mdm_model_free> {
public:
    using handle::handle;

    /** Opens a model file. */
    static model open(utf8 path, error &failure) noexcept {
        return detail::make<model, mdm_model>(failure, [&](mdm_model **made, mdm_error **place) {
            return mdm_model_open(path.c_str(), made, place);
        });
    }
    /** Opens a file of heads and the file of their backbone. */
    static model open_heads(utf8 heads, utf8 backbone, error &failure) noexcept {
        return detail::make<model, mdm_model>(failure, [&](mdm_model **made, mdm_error **place) {
            return mdm_model_open_heads(heads.c_str(), backbone.c_str(), made, place);
        });
    }
    /** Takes a model from the content of a file, which is copied: a container, or a pointer and a number of bytes. */
    static model from_memory(const void *data, std::size_t size, error &failure) noexcept {
        return detail::make<model, mdm_model>(failure, [&](mdm_model **made, mdm_error **place) {
            return mdm_model_from_memory(data, size, made, place);
        });
    }
    template <class Bytes> static model from_memory(const Bytes &bytes, error &failure) noexcept {
        return from_memory(std::data(bytes), std::size(bytes) * sizeof(*std::data(bytes)), failure);
    }
    /** What the model says about itself; the strings belong to it. */
    model_info info(error &failure) const noexcept {
        return detail::tell<model_info>(failure, [&](mdm_model_info *info, mdm_error **place) {
            return mdm_model_get_info(get(), info, place);
        });
    }
    /** Name and colour of a class; the name belongs to the model. */
    mdm::class_info class_info(std::uint32_t index, error &failure) const noexcept {
        return detail::tell<mdm::class_info>(failure, [&](mdm_class_info *info, mdm_error **place) {
            return mdm_model_class(get(), index, info, place);
        });
    }
    /** Shape of a decoder block's output. */
    block_info block(std::uint32_t index, error &failure) const noexcept {
        return detail::tell<block_info>(failure, [&](mdm_block_info *info, mdm_error **place) {
            return mdm_model_block(get(), index, info, place);
        });
    }
    /** What had to be assumed about the backbone; NULL beyond the last. The string belongs to the model. */
    const char *assumption(std::uint32_t index) const noexcept { return mdm_model_assumption(get(), index); }

#if MDM_HPP_EXCEPTIONS
    static model open(utf8 path) {
        return detail::checked([&](error &failure) { return open(path, failure); });
    }
    static model open_heads(utf8 heads, utf8 backbone) {
        return detail::checked([&](error &failure) { return open_heads(heads, backbone, failure); });
    }
    static model from_memory(const void *data, std::size_t size) {
        return detail::checked([&](error &failure) { return from_memory(data, size, failure); });
    }
    template <class Bytes> static model from_memory(const Bytes &bytes) {
        return detail::checked([&](error &failure) { return from_memory(bytes, failure); });
    }
    model_info info() const {
        return detail::checked([&](error &failure) { return info(failure); });
    }
    mdm::class_info class_info(std::uint32_t index) const {
        return detail::checked([&](error &failure) { return class_info(index, failure); });
    }
    block_info block(std::uint32_t index) const {
        return detail::checked([&](error &failure) { return block(index, failure); });
    }
#endif
};

/** A flag that any thread may raise to stop the runs that were given it. */
class cancel_token : public detail::handle<mdm_cancel, mdm_cancel_free> {
public:
    using handle::handle;

    static cancel_token make(error &failure) noexcept {
        return detail::make<cancel_token, mdm_cancel>(failure, mdm_cancel_new);
    }
    void raise(error &failure) const noexcept {
        failure.from([&](mdm_error **place) { return mdm_cancel_raise(get(), place); });
    }
    bool is_raised() const noexcept { return mdm_cancel_is_raised(get()) != 0; }

#if MDM_HPP_EXCEPTIONS
    static cancel_token make() {
        return detail::checked([](error &failure) { return make(failure); });
    }
    void raise() const {
        detail::checked([&](error &failure) { raise(failure); });
    }
#endif
};

/**
 * How a run is watched and stopped: by a token, by a progress callback that is given a `const mdm::progress &`, or both.
 *
 *     segmenter.run(image, result, mdm::control(token, [&](const mdm::progress &progress) { bar.set(progress.fraction); }));
 *
 * A token is used while the control is.
 */
template <class Progress = detail::nothing> class control {
public:
    control() = default;
    control(Progress watch) : progress_(std::move(watch)) {}
    explicit control(const cancel_token &token) : token_(token.get()) {}
    control(const cancel_token &token, Progress watch) : token_(token.get()), progress_(std::move(watch)) {}

    /** Makes a call of mdm.h, `mdm_status (const mdm_run *, mdm_error **)`, that may call `thrown`'s callbacks. */
    template <class Call> void run(detail::caught &thrown, error &failure, Call &&call) {
        detail::sized<mdm_run> run;
        run.cancel = token_;
        detail::bound<Progress> watch{progress_, thrown};
        if constexpr (!std::is_same_v<Progress, detail::nothing>) {
            run.progress = detail::call_back<Progress, mdm_progress>;
            run.user_data = &watch;
        }
        failure.from([&](mdm_error **place) { return call(&run, place); });
        thrown.rethrow();
    }

private:
    mdm_cancel *token_ = nullptr;
    Progress progress_;
};
control() -> control<>;
control(const cancel_token &) -> control<>;

/** An image in memory. Members that the constructor does not set are as in mdm_image: strides, layout, microns_per_pixel, range. */
class image_view : public detail::sized<mdm_image> {
public:
    image_view() noexcept = default;
    /** The pixels are a container, which must outlive the view, or a pointer and a number of bytes. */
    template <class Pixels>
    image_view(const Pixels &of, std::uint32_t columns, std::uint32_t rows, mdm_pixel_format of_format) noexcept
        : image_view(std::data(of), std::size(of) * sizeof(*std::data(of)), columns, rows, of_format) {}
    image_view(const void *data, std::size_t size, std::uint32_t columns, std::uint32_t rows,
               mdm_pixel_format of_format) noexcept {
        pixels = data;
        pixels_size = size;
        width = columns;
        height = rows;
        format = of_format;
    }
    /** Declares which stored values stand for black and white, as 0 and 4095 of a camera of 12 bits. */
    image_view &set_range(double low, double high) noexcept {
        range_low = low;
        range_high = high;
        return *this;
    }
};

/** Where a result goes: buffers that must outlive the view. labels_row_stride is as in mdm_result. */
class result_view : public detail::sized<mdm_result> {
public:
    result_view() noexcept = default;
    /** Labels of 8 or 16 bits. */
    result_view(span<std::uint8_t> to) noexcept { set_labels(to); }
    result_view(span<std::uint16_t> to) noexcept { set_labels(to); }
    template <class Labels, class Label = std::remove_pointer_t<decltype(std::data(std::declval<Labels &>()))>>
    result_view(Labels &to) noexcept : result_view(span<Label>(to)) {}

    result_view &set_labels(span<std::uint8_t> to) noexcept { return set_labels(to.data(), to.size_bytes(), MDM_LABEL_U8); }
    result_view &set_labels(span<std::uint16_t> to) noexcept { return set_labels(to.data(), to.size_bytes(), MDM_LABEL_U16); }
    result_view &set_probabilities(span<float> to) noexcept {
        probabilities = to.data();
        probabilities_size = to.size_bytes();
        return *this;
    }
    result_view &set_uncertainty(span<float> to) noexcept {
        uncertainty = to.data();
        uncertainty_size = to.size_bytes();
        return *this;
    }

private:
    result_view &set_labels(void *to, std::size_t size, mdm_label_type type) noexcept {
        labels = to;
        labels_size = size;
        label_type = type;
        return *this;
    }
};

/**
 * An image that is read as it is needed, by a callback that is given a `const mdm::region &`. Other members are as in mdm_source;
 * `read` and `user_data` are ignored.
 */
template <class Read> class source : public detail::sized<mdm_source> {
public:
    source(Read reader, std::uint32_t columns, std::uint32_t rows, mdm_pixel_format of_format)
        : reader_(std::move(reader)) {
        this->width = columns;
        this->height = rows;
        this->format = of_format;
    }
    /** All levels, level 0 first; they must outlive the source. */
    source &set_levels(span<const mdm_level> all) noexcept {
        this->levels = all.data();
        this->level_count = all.size();
        return *this;
    }
    /** Declares which stored values stand for black and white, as 0 and 4095 of a camera of 12 bits. */
    source &set_range(double low, double high) noexcept {
        this->range_low = low;
        this->range_high = high;
        return *this;
    }
    Read &reader() const noexcept { return reader_; }

private:
    mutable Read reader_;
};

/** Takes a result band by band, in a callback that is given a `const mdm::band &`. */
template <class Write> class sink {
public:
    sink(Write writer, mdm_label_type type = MDM_LABEL_U8) : writer_(std::move(writer)), type_(type) {}
    Write &writer() const noexcept { return writer_; }
    mdm_label_type label_type() const noexcept { return type_; }

private:
    mutable Write writer_;
    mdm_label_type type_;
};

/** Where row `y` of a region goes, counted from the region's first row; for planar images, the row of a plane. */
template <class Sample> Sample *row(const region &of, std::uint32_t y, std::uint32_t plane = 0) noexcept {
    auto *bytes = static_cast<unsigned char *>(of.pixels) + plane * of.plane_stride + y * of.row_stride;
    return static_cast<Sample *>(static_cast<void *>(bytes));
}

/** [height][width] labels of a band; `Label` is what the sink asked for, std::uint8_t or std::uint16_t. */
template <class Label> span<const Label> labels(const band &of) noexcept {
    return {static_cast<const Label *>(of.labels), std::size_t{of.height} * of.width};
}

/** [height][width][classes] probabilities of a band; empty unless the segmenter makes them. */
inline span<const float> probabilities(const band &of) noexcept {
    return {of.probabilities, of.probabilities ? std::size_t{of.height} * of.width * of.classes : 0};
}

/** [height][width] uncertainty of a band; empty unless the segmenter makes it. */
inline span<const float> uncertainty(const band &of) noexcept {
    return {of.uncertainty, of.uncertainty ? std::size_t{of.height} * of.width : 0};
}

/** [height][width][channels] values of a map. */
inline span<const float> values(const mdm_map &of) noexcept {
    return {of.data, std::size_t{of.height} * of.width * of.channels};
}

/** Segments images with one model on one device, for one thread at a time. */
class segmenter : public detail::handle<mdm_segmenter, mdm_segmenter_free> {
public:
    using handle::handle;

    static segmenter make(const model &with, const device &on, const mdm_segment_options &options,
                          error &failure) noexcept {
        return detail::make<segmenter, mdm_segmenter>(failure, [&](mdm_segmenter **made, mdm_error **place) {
            return mdm_segmenter_new(with.get(), on.get(), &options, made, place);
        });
    }
    static segmenter make(const model &with, const device &on, error &failure) noexcept {
        return make(with, on, segment_options(), failure);
    }
    /** How large the result of an image is. */
    mdm::result_size result_size(std::uint32_t width, std::uint32_t height, mdm_label_type type,
                                 error &failure) const noexcept {
        return detail::tell<mdm::result_size>(failure, [&](mdm_result_size *size, mdm_error **place) {
            return mdm_segmenter_result_size(get(), width, height, type, size, place);
        });
    }
    /** Which level of a source would be read, and how large its result is. */
    mdm::result_size result_size(const mdm_source &of, mdm_label_type type, error &failure) const noexcept {
        return detail::tell<mdm::result_size>(failure, [&](mdm_result_size *size, mdm_error **place) {
            return mdm_segmenter_source_size(get(), &of, type, size, place);
        });
    }
    /** Segments an image in memory. `watched` may be {}. */
    template <class Progress = detail::nothing>
    report run(const mdm_image &image, const mdm_result &result, control<Progress> watched, error &failure) {
        report done;
        detail::caught thrown;
        watched.run(thrown, failure, [&](const mdm_run *run, mdm_error **place) {
            return mdm_segmenter_run(get(), &image, &result, run, &done, place);
        });
        return done;
    }
    /** Segments an image that is read as it is needed, and hands out the result as soon as it is there. */
    template <class Read, class Write, class Progress = detail::nothing>
    report run(const source<Read> &image, const sink<Write> &result, control<Progress> watched, error &failure) {
        report done;
        detail::caught thrown;
        detail::bound<Read> read{image.reader(), thrown};
        detail::bound<Write> write{result.writer(), thrown};
        mdm_source from = image;
        from.read = detail::call_back<Read, mdm_region>;
        from.user_data = &read;
        detail::sized<mdm_sink> to;
        to.write = detail::call_back<Write, mdm_band>;
        to.user_data = &write;
        to.label_type = result.label_type();
        watched.run(thrown, failure, [&](const mdm_run *run, mdm_error **place) {
            return mdm_segmenter_run_source(get(), &from, &to, run, &done, place);
        });
        return done;
    }

#if MDM_HPP_EXCEPTIONS
    static segmenter make(const model &with, const device &on,
                          const mdm_segment_options &options = segment_options()) {
        return detail::checked([&](error &failure) { return make(with, on, options, failure); });
    }
    mdm::result_size result_size(std::uint32_t width, std::uint32_t height,
                                 mdm_label_type type = MDM_LABEL_U8) const {
        return detail::checked([&](error &failure) { return result_size(width, height, type, failure); });
    }
    mdm::result_size result_size(const mdm_source &of, mdm_label_type type = MDM_LABEL_U8) const {
        return detail::checked([&](error &failure) { return result_size(of, type, failure); });
    }
    template <class Progress = detail::nothing>
    report run(const mdm_image &image, const mdm_result &result, control<Progress> watched = {}) {
        return detail::checked([&](error &failure) { return run(image, result, std::move(watched), failure); });
    }
    template <class Read, class Write, class Progress = detail::nothing>
    report run(const source<Read> &image, const sink<Write> &result, control<Progress> watched = {}) {
        return detail::checked([&](error &failure) { return run(image, result, std::move(watched), failure); });
    }
#endif
};

/** The features of one window, which exist during a call of the callback that was given it. */
class window {
public:
    explicit window(const mdm_window *of) noexcept : window_(of) {}
    const mdm_window *get() const noexcept { return window_; }

    /** Where the window lies and what it holds. */
    window_info info(error &failure) const noexcept {
        return detail::tell<window_info>(failure, [&](mdm_window_info *info, mdm_error **place) {
            return mdm_window_get_info(window_, info, place);
        });
    }
    /** A map of the window; see `values`. */
    mdm::map map(std::uint32_t index, error &failure) const noexcept {
        return detail::tell<mdm::map>(failure, [&](mdm_map *told, mdm_error **place) {
            return mdm_window_map(window_, index, told, place);
        });
    }
    /** Writes the features of one pixel, as many as there are channels. */
    void pixel(std::uint32_t y, std::uint32_t x, span<float> to, error &failure) const noexcept {
        failure.from([&](mdm_error **place) {
            return mdm_window_pixel(window_, y, x, to.data(), to.size_bytes(), place);
        });
    }

#if MDM_HPP_EXCEPTIONS
    window_info info() const {
        return detail::checked([&](error &failure) { return info(failure); });
    }
    mdm::map map(std::uint32_t index) const {
        return detail::checked([&](error &failure) { return map(index, failure); });
    }
    void pixel(std::uint32_t y, std::uint32_t x, span<float> to) const {
        detail::checked([&](error &failure) { pixel(y, x, to, failure); });
    }
#endif

private:
    const mdm_window *window_;
};

namespace detail {

template <class Visit> mdm_status call_visit(void *user_data, const mdm_window *of) noexcept {
    auto &to = *static_cast<bound<Visit> *>(user_data);
    return to.thrown.guard([&] { return answer(to.function, window(of)); });
}

} // namespace detail

/** Which features are taken. Members that are not set here are as in mdm_feature_options. */
class feature_options : public detail::sized<mdm_feature_options> {
public:
    /** Timesteps at which the network is run; they must outlive the options. */
    feature_options &set_timesteps(span<const std::uint32_t> all) noexcept {
        timesteps = all.data();
        timestep_count = all.size();
        return *this;
    }
    /** Decoder blocks, ascending; they must outlive the options. */
    feature_options &set_blocks(span<const std::uint32_t> all) noexcept {
        blocks = all.data();
        block_count = all.size();
        return *this;
    }
};

/** Takes features of images with one backbone on one device, for one thread at a time. */
class features : public detail::handle<mdm_features, mdm_features_free> {
public:
    using handle::handle;

    static features make(const model &with, const device &on, const mdm_feature_options &options,
                         error &failure) noexcept {
        return detail::make<features, mdm_features>(failure, [&](mdm_features **made, mdm_error **place) {
            return mdm_features_new(with.get(), on.get(), &options, made, place);
        });
    }
    static features make(const model &with, const device &on, error &failure) noexcept {
        return make(with, on, feature_options(), failure);
    }
    /** What is delivered. */
    features_info info(error &failure) const noexcept {
        return detail::tell<features_info>(failure, [&](mdm_features_info *info, mdm_error **place) {
            return mdm_features_get_info(get(), info, place);
        });
    }
    /** Shows all windows of an image to a callback that is given a `const mdm::window &`. `watched` may be {}. */
    template <class Visit, class Progress = detail::nothing>
    void run(const mdm_image &image, Visit &&visit, control<Progress> watched, error &failure) {
        using function = std::remove_reference_t<Visit>;
        detail::caught thrown;
        detail::bound<function> show{visit, thrown};
        watched.run(thrown, failure, [&](const mdm_run *run, mdm_error **place) {
            return mdm_features_run(get(), &image, detail::call_visit<function>, &show, run, place);
        });
    }
    /** The same for an image that is read as it is needed. */
    template <class Read, class Visit, class Progress = detail::nothing>
    void run(const source<Read> &image, Visit &&visit, control<Progress> watched, error &failure) {
        using function = std::remove_reference_t<Visit>;
        detail::caught thrown;
        detail::bound<Read> read{image.reader(), thrown};
        detail::bound<function> show{visit, thrown};
        mdm_source from = image;
        from.read = detail::call_back<Read, mdm_region>;
        from.user_data = &read;
        watched.run(thrown, failure, [&](const mdm_run *run, mdm_error **place) {
            return mdm_features_run_source(get(), &from, detail::call_visit<function>, &show, run, place);
        });
    }

#if MDM_HPP_EXCEPTIONS
    static features make(const model &with, const device &on,
                         const mdm_feature_options &options = feature_options()) {
        return detail::checked([&](error &failure) { return make(with, on, options, failure); });
    }
    features_info info() const {
        return detail::checked([&](error &failure) { return info(failure); });
    }
    template <class Visit, class Progress = detail::nothing>
    void run(const mdm_image &image, Visit &&visit, control<Progress> watched = {}) {
        detail::checked([&](error &failure) { run(image, visit, std::move(watched), failure); });
    }
    template <class Read, class Visit, class Progress = detail::nothing>
    void run(const source<Read> &image, Visit &&visit, control<Progress> watched = {}) {
        detail::checked([&](error &failure) { run(image, visit, std::move(watched), failure); });
    }
#endif
};

} // namespace mdm

#if defined(__cpp_lib_ranges)
#include <span>
/* So that a temporary span becomes a std::span. */
template <class T> inline constexpr bool std::ranges::enable_borrowed_range<mdm::span<T>> = true;
#endif

#endif
