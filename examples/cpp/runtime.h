// What the algorithms run on: tensors, and functions by name.
#pragma once

#include <cstdint>
#include <map>
#include <functional>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace nti {

using Json = nlohmann::json;

struct Refused : std::runtime_error { using std::runtime_error::runtime_error; };

// A tensor row by row, which owns its bytes.
struct Tensor {
  std::string dtype;  // "float32", "int64", "uint8" or "bool"
  std::vector<int64_t> shape;
  std::vector<char> bytes;

  static size_t width(const std::string& dtype);
  static Tensor zeros(std::string dtype, std::vector<int64_t> shape);
  static Tensor scalar(std::string dtype, const void* value);
  static Tensor number(float value) { return scalar("float32", &value); }
  static Tensor integer(int64_t value) { return scalar("int64", &value); }

  int64_t count() const {
    return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
  }
  float* floats() { return reinterpret_cast<float*>(bytes.data()); }
  const float* floats() const { return reinterpret_cast<const float*>(bytes.data()); }
  int64_t rows() const { return shape.empty() ? 0 : shape[0]; }
  Tensor part(int64_t first, int64_t count = 1) const;  // rows, (count, ...)
  Tensor at(int64_t index) const;                        // one row, (...)
};

Tensor joined(const std::vector<Tensor>& parts);  // along the first dimension

using Tensors = std::map<std::string, Tensor>;

// The exported functions, on one runtime library.
class Runtime {
 public:
  virtual ~Runtime() = default;
  virtual std::vector<Tensor> run(const std::string& function,
                                  const std::vector<Tensor>& inputs) = 0;
};

class MappedFile;

// Each library has its own. The weights outlive the runtime. `runtime_format` says which files of the
// manifest it reads.
std::unique_ptr<Runtime> make_runtime(const std::string& folder, const Json& manifest,
                                      const MappedFile& weights, int threads);
extern const char* const runtime_format;

}  // namespace nti
