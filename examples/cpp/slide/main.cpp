/*
 * Segments a whole slide: slide MODEL SLIDE LABELS.tif OVERLAY.png [DEVICE]
 *
 * The labels are those of the level of the slide that suits the model, which the library chooses. Memory grows with the slide's
 * width, not with its height. Ctrl-C stops it, and no file is left half written.
 */
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <exception>
#include <string>
#include <thread>

#ifdef _WIN32
#include <io.h>
#else
#include <unistd.h>
#endif

#include <mdm.hpp>

#include "label_tiff.hpp"
#include "output_file.hpp"
#include "overlay.hpp"
#include "slide_reader.hpp"

namespace {

bool terminal() {
#ifdef _WIN32
    return _isatty(_fileno(stderr)) != 0;
#else
    return isatty(STDERR_FILENO) != 0;
#endif
}

std::atomic<bool> interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free, "signal handlers may use nothing else");

extern "C" void interrupt(int) { interrupted = true; }

/** Raises a token soon after Ctrl-C: a signal handler may not. */
class interrupt_watch {
public:
    explicit interrupt_watch(const mdm::cancel_token &token)
        : thread_([this, &token] {
              while (!done_ && !interrupted) std::this_thread::sleep_for(std::chrono::milliseconds(20));
              mdm::error ignored;
              if (interrupted) token.raise(ignored);
          }) {}
    ~interrupt_watch() {
        done_ = true;
        thread_.join();
    }

private:
    std::atomic<bool> done_{false};
    std::thread thread_;
};

/** A line of the terminal that tells how a run gets on; nothing where standard error goes elsewhere. */
class progress_line {
public:
    ~progress_line() {
        if (shown_) std::fputc('\n', stderr);
    }
    void show(const mdm::progress &progress) {
        const auto now = std::chrono::steady_clock::now();
        const bool last = progress.windows_done == progress.windows;
        if (!terminal_ || (shown_ && !last && now - last_ < std::chrono::milliseconds(100))) return;
        last_ = now;
        shown_ = true;
        const double passed = std::chrono::duration<double>(now - start_).count();
        const int filled = static_cast<int>(progress.fraction * 30);
        std::fprintf(stderr, "\r[%.*s%*s] %3.0f %%  %llu of %llu windows", filled, "##############################",
                     30 - filled, "", progress.fraction * 100, static_cast<unsigned long long>(progress.windows_done),
                     static_cast<unsigned long long>(progress.windows));
        if (progress.fraction > 0.02) {
            std::fprintf(stderr, ", %.0f s left  ", passed / progress.fraction * (1 - progress.fraction));
        }
        std::fflush(stderr);
    }

private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now(), last_;
    bool terminal_ = terminal(), shown_ = false;
};

void segment(const char *model_path, const char *slide_path, const char *labels_path, const char *overlay_path,
             const char *device_name) {
    mdm::check_abi();
    const mdm::model model = mdm::model::open(model_path);
    slide_reader slide(slide_path);
    if (slide.microns_per_pixel() == 0) {
        std::fprintf(stderr, "slide: %s does not say how large its pixels are: level 0 is used as it is\n", slide_path);
    }
    const mdm::device device = mdm::device::open(device_name);
    mdm::segmenter segmenter = mdm::segmenter::make(model, device);

    // What is read goes into the overlay too: the slide is decoded once.
    overlay *reads_into = nullptr;
    mdm::source source(
        [&](const mdm::region &region) {
            slide.read(region);
            reads_into->add(region);
        },
        slide.width(), slide.height(), mdm::pixel_format::rgb8);
    source.set_levels(slide.levels());
    source.microns_per_pixel = slide.microns_per_pixel();
    source.tile_width = slide.tile_width() * 8;
    source.tile_height = slide.tile_height();
    source.rereadable = 1;

    const mdm::result_size size = segmenter.result_size(source, mdm::label_type::u8);
    const double scale = slide.levels()[size.level].downsample;
    std::printf("%s: level %u, %u x %u pixels, on %s (%s)\n", slide_path, size.level, size.width, size.height,
                device.info().name, device.reason());
    std::fflush(stdout);

    output_file labels_file(labels_path), overlay_file(overlay_path);
    label_tiff labels(labels_file.partial(), size, model, slide.microns_per_pixel() * scale);
    overlay picture(size, model);
    reads_into = &picture;
    mdm::sink sink([&](const mdm::band &band) {
        labels.write(band);
        picture.add(band);
    });

    const mdm::cancel_token token = mdm::cancel_token::make();
    mdm::report report;
    {
        const interrupt_watch watch(token);
        progress_line line;
        report = segmenter.run(source, sink,
                               mdm::control(token, [&](const mdm::progress &progress) { line.show(progress); }));
    }
    labels.close();
    picture.write(overlay_file.partial());
    if (interrupted) throw mdm::exception(mdm::status::cancelled, "cancelled");
    labels_file.commit();
    overlay_file.commit();
    std::printf("%llu windows in %.1f s\n", static_cast<unsigned long long>(report.windows), report.seconds);
}

} // namespace

int main(int count, char **arguments) {
    if (count < 5 || count > 6) {
        std::fprintf(stderr, "usage: slide MODEL SLIDE LABELS.tif OVERLAY.png [DEVICE]\n");
        return 2;
    }
    std::signal(SIGINT, interrupt);
    std::signal(SIGTERM, interrupt);
    try {
        segment(arguments[1], arguments[2], arguments[3], arguments[4], count == 6 ? arguments[5] : "auto");
        return 0;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "slide: %s\n", interrupted ? "interrupted, nothing was written" : error.what());
        return interrupted ? 130 : 1;
    }
}
