// Files: safetensors, SHA-256, and the check of an exported folder.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "runtime.h"

namespace nti {

// Where a tensor of a file lies in memory.
struct View {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string_view bytes;
};

// A safetensors file in memory as the system maps it: nothing is read before it is used, and programs
// that map the same file share it. Copies of this object share it, too; views live as long as one.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);

  const Json& entries() const { return entries_; }
  const Json& metadata() const { return metadata_; }
  std::string_view body() const { return body_; }
  View view(const std::string& name) const;
  Tensor tensor(const std::string& name) const;  // a copy

 private:
  std::string path_;
  std::shared_ptr<const std::string_view> bytes_;
  Json entries_, metadata_;
  std::string_view body_;
};

// A safetensors file whose metadata has one key of a JSON object with a digest.
struct TensorFile {
  Json header;
  MappedFile tensors;
};

std::string sha256_of_file(const std::string& path);

// Refused: a file without the key, or one that does not agree with its digest.
TensorFile read_tensors(const std::string& path, const std::string& key);
void write_tensors(const std::string& path, const std::string& key, Json header,
                   const Tensors& tensors);

// Before the work: Refused where a result cannot be written, or would replace what is none.
void check_output(const std::string& path, const std::string& key);

// The manifest, once every file of the folder has proved to be as it was written.
Json read_manifest(const std::string& folder, const std::string& format);

}  // namespace nti
