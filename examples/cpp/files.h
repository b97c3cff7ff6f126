// Files: safetensors, SHA-256, and the check of an exported folder.
#pragma once

#include <string>

#include "runtime.h"

namespace nti {

// A safetensors file whose metadata has one key of a JSON object with a digest.
struct TensorFile {
  Json header;
  Tensors tensors;
};

std::string read_bytes(const std::string& path);
std::string sha256_of_file(const std::string& path);

// Refused: a file without the key, or one that does not agree with its digest.
TensorFile read_tensors(const std::string& path, const std::string& key);
void write_tensors(const std::string& path, const std::string& key, Json header,
                   const Tensors& tensors);

// Before the work: Refused where a result cannot be written, or would replace what is none.
void check_output(const std::string& path, const std::string& key);

// The manifest, once every file of the folder has proved to be as it was written.
Json read_manifest(const std::string& folder, const std::string& format);

// A safetensors file in memory as the system maps it: nothing is read before it is used, and programs
// that map the same file share it.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  bool has(const std::string& name) const { return entries_.contains(name); }
  Tensor tensor(const std::string& name) const;  // a copy
  // Where a tensor's bytes are, and what they are, for those who copy nothing.
  const char* data(const std::string& name) const;
  std::vector<int64_t> shape(const std::string& name) const { return entries_.at(name).at("shape"); }
  std::string dtype(const std::string& name) const;

 private:
  std::string path_;
  size_t size_ = 0, start_ = 0;
  const char* bytes_ = nullptr;
  Json entries_;
};

}  // namespace nti
