// The command-line program: an example of the C interface.
#include <png.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "files.h"
#include "nti.h"

namespace {

const char* const USAGE =
    "expected one of\n"
    "  [--threads N] invert FOLDER PLAN IMAGE.png OUT.nti.safetensors\n"
    "  [--threads N] reconstruct FOLDER INVERSION PLAN OUT.png\n"
    "  [--threads N] edit FOLDER INVERSION PLAN OUT.png";

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "nti: %s\n", message.c_str());
  std::exit(2);
}

std::vector<uint8_t> read_png(const char* path, int width, int height) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  if (png_image_begin_read_from_file(&image, path) == 0)
    fail(std::string(path) + ": " + image.message);
  if (image.format & PNG_FORMAT_FLAG_ALPHA)
    fail(std::string(path) + ": got a transparent picture, expected one without: flatten it");
  image.format = PNG_FORMAT_RGB;
  if (static_cast<int>(image.width) != width || static_cast<int>(image.height) != height)
    fail(std::string(path) + ": got " + std::to_string(image.width) + "x" +
         std::to_string(image.height) + " pixels, expected " + std::to_string(width) + "x" +
         std::to_string(height) + ", for which the folder was exported: resize it");
  std::vector<uint8_t> pixels(PNG_IMAGE_SIZE(image));
  if (png_image_finish_read(&image, nullptr, pixels.data(), 0, nullptr) == 0)
    fail(std::string(path) + ": " + image.message);
  return pixels;
}

void write_png(const std::string& path, const uint8_t* pixels, int width, int height) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = width, image.height = height, image.format = PNG_FORMAT_RGB;
  if (png_image_write_to_file(&image, path.c_str(), 0, pixels, 0, nullptr) == 0)
    fail(path + ": " + image.message);
  std::printf("wrote %s\n", path.c_str());
}

int show(void*, int done, int total) {
  std::fprintf(stderr, "\r%d of %d%s", done, total, done == total ? "\n" : "");
  return 0;
}

}  // namespace

int main(int count, char** given) try {
  int threads = 1, first = 1;
  if (count > 2 && std::strcmp(given[1], "--threads") == 0) threads = std::atoi(given[2]), first = 3;
  const std::string command = count - first == 5 ? given[first] : "";
  if (command != "invert" && command != "reconstruct" && command != "edit") fail(USAGE);
  char** files = given + first + 1;
  nti_model* opened = nullptr;
  const nti_status status = nti_open(files[0], threads, &opened);
  std::unique_ptr<nti_model, decltype(&nti_close)> model(opened, nti_close);
  auto check = [&](nti_status found) { if (found != NTI_OK) fail(nti_last_error(opened)); };
  check(status);
  int width, height, edits;
  check(nti_size(opened, &width, &height, &edits));
  const size_t size = size_t{3} * width * height;
  if (command == "invert") {
    const std::vector<uint8_t> pixels = read_png(files[2], width, height);
    const std::string sha = nti::sha256_of_file(files[2]);
    check(nti_invert(opened, files[1], pixels.data(), sha.c_str(), files[3], show, nullptr));
    std::printf("wrote %s\n", files[3]);
  } else if (command == "reconstruct") {
    std::vector<uint8_t> pixels(size);
    check(nti_reconstruct(opened, files[1], files[2], pixels.data(), show, nullptr));
    write_png(files[3], pixels.data(), width, height);
  } else {
    std::vector<uint8_t> pixels(size * edits);
    check(nti_edit(opened, files[1], files[2], pixels.data(), show, nullptr));
    const std::filesystem::path name = files[3];
    for (int e = 0; e < edits; e++) {
      std::filesystem::path numbered = name;
      if (edits > 1)
        numbered.replace_filename(name.stem().string() + "-" + std::to_string(e + 1) +
                                  name.extension().string());
      write_png(numbered.string(), pixels.data() + e * size, width, height);
    }
  }
  return 0;
} catch (const std::exception& error) {
  fail(error.what());
}
