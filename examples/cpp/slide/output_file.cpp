#include "output_file.hpp"

#include <filesystem>
#include <utility>

output_file::output_file(std::string path) : path_(std::move(path)), partial_(path_ + ".part") {}

output_file::~output_file() {
    std::error_code ignored;
    if (!committed_) std::filesystem::remove(partial_, ignored);
}

void output_file::commit() {
    std::filesystem::rename(partial_, path_);
    committed_ = true;
}
