#include "files.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <tuple>

namespace nti {
namespace {

const std::map<std::string, std::string> DTYPES = {
    {"F32", "float32"}, {"I64", "int64"}, {"U8", "uint8"}, {"BOOL", "bool"}};

std::string stored(const std::string& dtype) {
  for (const auto& [name, ours] : DTYPES)
    if (ours == dtype) return name;
  throw Refused("dtype: got " + dtype);
}

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr);
  }
  void add(const char* data, size_t size) { EVP_DigestUpdate(context_.get(), data, size); }
  std::string hex() {
    unsigned char found[32];
    EVP_DigestFinal_ex(context_.get(), found, nullptr);
    char text[65];
    for (int i = 0; i < 32; i++) std::snprintf(text + 2 * i, 3, "%02x", found[i]);
    return text;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

// A number as Python's repr: the shortest digits that give it, with an exponent below 1e-4 and from
// 1e16 on.
std::string as_python(double value) {
  char text[32];
  auto end = std::to_chars(text, text + sizeof text, value, std::chars_format::scientific).ptr;
  std::string scientific(text, end);
  int exponent = std::stoi(scientific.substr(scientific.find('e') + 1));
  if (exponent < -4 || exponent >= 16) return scientific;
  end = std::to_chars(text, text + sizeof text, value, std::chars_format::fixed).ptr;
  std::string fixed(text, end);
  return fixed.find('.') == std::string::npos ? fixed + ".0" : fixed;
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

std::string digest(const Json& header, const Json& entries, const char* body, size_t size) {
  std::string text = as_python(Json::array({header, entries}));
  Sha256 hash;
  hash.add(text.data(), text.size());
  hash.add(body, size);
  return hash.hex();
}

// A safetensors file's JSON, and where its tensors begin.
std::pair<Json, size_t> entries_of(const std::string& path, std::string_view bytes) {
  uint64_t length = 0;
  if (bytes.size() >= 8) std::memcpy(&length, bytes.data(), 8);
  if (bytes.size() < 8 || length > bytes.size() - 8)
    throw Refused(path + ": got no safetensors file");
  try {
    return {Json::parse(bytes.substr(8, length)), 8 + length};
  } catch (const Json::exception&) {
    throw Refused(path + ": got no safetensors file");
  }
}

// What a file says of one tensor, once its bytes have proved to be there.
struct Entry {
  std::string dtype;
  std::vector<int64_t> shape;
  size_t first, past;
};

Entry entry_of(const std::string& path, const Json& entry, size_t start, size_t size) {
  auto dtype = DTYPES.find(entry.at("dtype").get<std::string>());
  if (dtype == DTYPES.end())
    throw Refused(path + ": got a tensor of " + entry.at("dtype").get<std::string>() +
                  ", expected float32: save it without --store");
  Entry found{dtype->second, entry.at("shape"), entry.at("data_offsets").at(0).get<size_t>(),
              entry.at("data_offsets").at(1).get<size_t>()};
  size_t expected = Tensor::width(found.dtype);
  for (int64_t side : found.shape) {
    if (side < 0 || (side > 0 && expected > size / static_cast<size_t>(side)))
      throw Refused(path + ": got a tensor that is larger than its file");
    expected *= static_cast<size_t>(side);
  }
  if (found.first > found.past || found.past > size - start || found.past - found.first != expected)
    throw Refused(path + ": got a tensor that is cut");
  found.first += start, found.past += start;
  return found;
}

}  // namespace

std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string bytes(std::istreambuf_iterator<char>(file), {});
  if (!file) throw Refused(path + ": cannot be read");
  return bytes;
}

std::string sha256_of_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Refused(path + ": no such file");
  Sha256 hash;
  std::vector<char> part(1 << 20);
  while (file.read(part.data(), static_cast<long>(part.size())), file.gcount() > 0)
    hash.add(part.data(), file.gcount());
  return hash.hex();
}

TensorFile read_tensors(const std::string& path, const std::string& key) {
  std::string bytes = read_bytes(path);
  auto [entries, start] = entries_of(path, bytes);
  Json metadata = entries.value("__metadata__", Json::object());
  entries.erase("__metadata__");
  if (!metadata.contains(key)) throw Refused(path + ": got a file without \"" + key + "\"");
  TensorFile found{Json::parse(metadata[key].get<std::string>()), {}};
  std::string expected = found.header.value("digest", "");
  found.header.erase("digest");
  if (digest(found.header, entries, bytes.data() + start, bytes.size() - start) != expected)
    throw Refused(path + ": does not agree with its digest: take another copy");
  for (const auto& [name, entry] : entries.items()) {
    Entry each = entry_of(path, entry, start, bytes.size());
    auto first = bytes.begin() + static_cast<long>(each.first);
    auto past = bytes.begin() + static_cast<long>(each.past);
    found.tensors.emplace(name, Tensor{each.dtype, each.shape, std::vector<char>(first, past)});
  }
  return found;
}

void write_tensors(const std::string& path, const std::string& key, Json header,
                   const Tensors& tensors) {
  Json entries = Json::object();
  std::string body;
  for (const auto& [name, tensor] : tensors) {
    size_t first = body.size();
    body.append(tensor.bytes.begin(), tensor.bytes.end());
    entries[name] = {{"dtype", stored(tensor.dtype)},
                     {"shape", tensor.shape},
                     {"data_offsets", {first, body.size()}}};
  }
  header["digest"] = digest(header, entries, body.data(), body.size());
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
  Json manifest = Json::parse(read_bytes(folder + "/manifest.json"), nullptr, false);
  if (!manifest.is_object() || manifest.value("format", "") != "nti-export-1")
    throw Refused(folder + ": expected a folder that `nti export` has finished");
  if (manifest.at("batch") != 1 || manifest.at("device") != "cpu")
    throw Refused(folder + ": expected an export for a CPU with --batch 1");
  for (const auto& [name, entry] : manifest.at("functions").items())
    if (!entry.at("files").contains(format))
      throw Refused(folder + ": got no " + format + " of " + name + ": export with --format " +
                    format);
  for (const auto& [name, entry] : manifest.at("files").items())
    if (sha256_of_file(folder + "/" + name) != entry.at("sha256"))
      throw Refused(folder + "/" + name + ": was changed since it was exported: export anew");
  return manifest;
}

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat facts {};
  if (file >= 0 && fstat(file, &facts) == 0 && facts.st_size > 0) {
    size_ = static_cast<size_t>(facts.st_size);
    void* mapped = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
    bytes_ = mapped == MAP_FAILED ? nullptr : static_cast<const char*>(mapped);
  }
  if (file >= 0) close(file);
  if (bytes_ == nullptr) throw Refused(path + ": cannot be read");
  try {
    std::tie(entries_, start_) = entries_of(path, {bytes_, size_});
  } catch (...) {
    munmap(const_cast<char*>(bytes_), size_);
    throw;
  }
}

MappedFile::~MappedFile() { munmap(const_cast<char*>(bytes_), size_); }

Tensor MappedFile::tensor(const std::string& name) const {
  Entry each = entry_of(path_, entries_.at(name), start_, size_);
  return {each.dtype, each.shape, std::vector<char>(bytes_ + each.first, bytes_ + each.past)};
}

const char* MappedFile::data(const std::string& name) const {
  return bytes_ + entry_of(path_, entries_.at(name), start_, size_).first;
}

std::string MappedFile::dtype(const std::string& name) const {
  return entry_of(path_, entries_.at(name), start_, size_).dtype;
}

}  // namespace nti
