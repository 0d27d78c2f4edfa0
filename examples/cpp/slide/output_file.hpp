#pragma once

#include <string>

/** A file under another name until it is whole; it is removed unless it was committed. */
class output_file {
public:
    explicit output_file(std::string path);
    output_file(const output_file &) = delete;
    output_file &operator=(const output_file &) = delete;
    ~output_file();

    /** Where to write. */
    const std::string &partial() const { return partial_; }
    /** Takes the place of a file that is there. It must have been closed. */
    void commit();

private:
    std::string path_, partial_;
    bool committed_ = false;
};
