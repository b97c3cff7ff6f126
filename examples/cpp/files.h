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

// The manifest, once every file of the folder has proved to be as it was written.
Json read_manifest(const std::string& folder, const std::string& format);

// The tensors of the weights' file whose names begin with `prefix`, without it.
Tensors read_weights(const std::string& path, const std::string& prefix);

}  // namespace nti
