#include "files.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

namespace nti {
namespace {

const std::map<std::string, std::string> DTYPES = {
    {"F32", "float32"}, {"I64", "int64"}, {"U8", "uint8"}, {"BOOL", "bool"}};

const std::map<std::string, std::string> STORED = {
    {"float32", "F32"}, {"int64", "I64"}, {"uint8", "U8"}, {"bool", "BOOL"}};

// JSON of a file, unless it is nested so deep that a stack might not hold it.
Json parsed(const std::string& path, std::string_view text) {
  int depth = 0;
  bool quoted = false;
  for (size_t k = 0; k < text.size() && depth <= 32; k++) {
    if (quoted && text[k] == '\\') k++;
    else if (text[k] == '"') quoted = !quoted;
    else if (!quoted) depth += ((text[k] | 32) == '{') - ((text[k] | 32) == '}');  // or [ and ]
  }
  if (depth > 32) throw Refused(path + ": got JSON nested deeper than 32 levels, expected fewer");
  return Json::parse(text, nullptr, false);
}

std::string sha256(std::initializer_list<std::string_view> parts) {
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr);
  for (std::string_view part : parts) EVP_DigestUpdate(context.get(), part.data(), part.size());
  unsigned char found[32];
  EVP_DigestFinal_ex(context.get(), found, nullptr);
  char hex[65];
  for (int i = 0; i < 32; i++) std::snprintf(hex + 2 * i, 3, "%02x", found[i]);
  return hex;
}

// A file's bytes, as the system maps them.
std::shared_ptr<const std::string_view> mapped(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat facts {};
  fstat(file, &facts);
  const size_t size = static_cast<size_t>(facts.st_size);
  void* first = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);  // fails for what is no file
  if (file >= 0) close(file);
  if (first == MAP_FAILED) throw Refused(path + ": cannot be read");
  auto unmap = [](const std::string_view* bytes) {
    munmap(const_cast<char*>(bytes->data()), bytes->size());
    delete bytes;
  };
  return {new std::string_view(static_cast<const char*>(first), size), unmap};
}

// A number as Python's repr: the shortest digits that give it, with an exponent below 1e-4 and from
// 1e16 on.
std::string as_python(double value) {
  const bool plain = value == 0 || (std::abs(value) >= 1e-4 && std::abs(value) < 1e16);
  const auto format = plain ? std::chars_format::fixed : std::chars_format::scientific;
  char text[32];
  const std::string found(text, std::to_chars(text, text + sizeof text, value, format).ptr);
  return plain && found.find('.') == std::string::npos ? found + ".0" : found;
}

// JSON as Python's json.dumps(sort_keys=True) writes it, over which a digest is taken.
std::string as_python(const Json& value) {
  if (value.is_number_float()) return as_python(value.get<double>());
  if (!value.is_structured()) return value.dump(-1, ' ', true);
  std::string found;
  for (const auto& [key, each] : value.items()) {
    if (!found.empty()) found += ", ";
    if (value.is_object()) found += Json(key).dump(-1, ' ', true) + ": ";
    found += as_python(each);
  }
  return value.is_object() ? "{" + found + "}" : "[" + found + "]";
}

std::string digest(const Json& header, const Json& entries, std::string_view body) {
  return sha256({as_python(Json::array({header, entries})), body});
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path), bytes_(mapped(path)) {
  uint64_t length = 0;
  if (bytes_->size() >= 8) std::memcpy(&length, bytes_->data(), 8);
  if (bytes_->size() >= 8 && length <= bytes_->size() - 8)
    entries_ = parsed(path, bytes_->substr(8, length));
  if (!entries_.is_object()) throw Refused(path + ": got no safetensors file");
  body_ = bytes_->substr(8 + length);
  metadata_ = entries_.value("__metadata__", Json::object());
  entries_.erase("__metadata__");
}

View MappedFile::view(const std::string& name) const {
  if (!entries_.contains(name)) throw Refused(path_ + ": got no tensor " + name);
  const Json& entry = entries_[name];
  const std::string stored = entry.at("dtype");
  if (!DTYPES.contains(stored))
    throw Refused(path_ + ": got a tensor of " + stored +
                  ", expected float32, as an inversion has without --store");
  const std::string& dtype = DTYPES.at(stored);
  const std::vector<int64_t> shape = entry.at("shape");
  const size_t first = entry.at("data_offsets").at(0), past = entry.at("data_offsets").at(1);
  size_t expected = Tensor::width(dtype);
  bool fits = first <= past && past <= body_.size();
  for (int64_t side : shape) {
    fits = fits && side >= 0 && (side == 0 || expected <= body_.size() / static_cast<size_t>(side));
    expected *= static_cast<size_t>(side);
  }
  if (!fits || past - first != expected) throw Refused(path_ + ": got a tensor that is cut");
  return {dtype, shape, body_.substr(first, expected)};
}

Tensor MappedFile::tensor(const std::string& name) const {
  const View found = view(name);
  return {found.dtype, found.shape, {found.bytes.begin(), found.bytes.end()}};
}

std::string sha256_of_file(const std::string& path) { return sha256({*mapped(path)}); }

TensorFile read_tensors(const std::string& path, const std::string& key) {
  const MappedFile file(path);
  if (!file.metadata().contains(key)) throw Refused(path + ": got a file without \"" + key + "\"");
  TensorFile found{parsed(path, file.metadata()[key].get<std::string>()), file};
  const std::string expected = found.header.value("digest", "");
  found.header.erase("digest");
  if (digest(found.header, file.entries(), file.body()) != expected)
    throw Refused(path + ": does not agree with its digest: take another copy");
  return found;
}

void write_tensors(const std::string& path, const std::string& key, Json header,
                   const Tensors& tensors) {
  Json entries = Json::object();
  std::string body;
  for (const auto& [name, tensor] : tensors) {
    size_t first = body.size();
    body.append(tensor.bytes.begin(), tensor.bytes.end());
    entries[name] = {{"dtype", STORED.at(tensor.dtype)},
                     {"shape", tensor.shape},
                     {"data_offsets", {first, body.size()}}};
  }
  header["digest"] = digest(header, entries, body);
  entries["__metadata__"] = {{key, as_python(header)}};
  std::string text = entries.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  uint64_t length = text.size();
  std::string part = path + ".part";
  std::ofstream file(part, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), 8);
  file << text << body;
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(part, path, error);
  if (!file || error) throw std::runtime_error(path + ": cannot be written");
}

void check_output(const std::string& path, const std::string& key) {
  if (std::filesystem::exists(path)) {
    try {
      read_tensors(path, key);
    } catch (const std::exception&) {
      throw Refused(path + ": is there and no " + key + ", expected a new name");
    }
  }
  const std::string part = path + ".part";
  if (!std::ofstream(part, std::ios::binary)) throw Refused(path + ": cannot be written");
  std::filesystem::remove(part);
}

Json read_manifest(const std::string& folder, const std::string& format) {
  Json manifest = parsed(folder, *mapped(folder + "/manifest.json"));
  if (!manifest.is_object() || manifest.value("format", "") != "nti-export-2")
    throw Refused(folder + ": expected a folder that `nti export` has finished");
  if (manifest.at("batch") != 1 || manifest.at("device") != "cpu")
    throw Refused(folder + ": expected an export for a CPU with --batch 1");
  for (const auto& [name, entry] : manifest.at("functions").items())
    if (!entry.at("files").contains(format))
      throw Refused(folder + ": got no " + format + " of " + name + ": nti export --format " + format);
  for (const auto& [name, entry] : manifest.at("files").items())
    if (sha256_of_file(folder + "/" + name) != entry.at("sha256"))
      throw Refused(folder + "/" + name + ": was changed since it was exported: export anew");
  return manifest;
}

}  // namespace nti
