#include "runtime.h"

#include <cstring>

namespace nti {

size_t Tensor::width(const std::string& dtype) {
  return dtype == "int64" ? 8 : dtype == "float32" ? 4 : 1;
}

Tensor Tensor::zeros(std::string dtype, std::vector<int64_t> shape) {
  Tensor made{std::move(dtype), std::move(shape), {}};
  made.bytes.assign(made.count() * width(made.dtype), 0);
  return made;
}

Tensor Tensor::scalar(std::string dtype, const void* value) {
  Tensor made = zeros(std::move(dtype), {});
  std::memcpy(made.bytes.data(), value, made.bytes.size());
  return made;
}

Tensor Tensor::part(int64_t first, int64_t count) const {
  if (first < 0 || count < 0 || first + count > rows())
    throw Refused("got a tensor with fewer rows than are needed");
  Tensor some{dtype, shape, {}};
  some.shape[0] = count;
  const long row = static_cast<long>(bytes.size() / static_cast<size_t>(rows()));
  some.bytes.assign(bytes.begin() + first * row, bytes.begin() + (first + count) * row);
  return some;
}

Tensor Tensor::at(int64_t index) const {
  Tensor one = part(index);
  one.shape.erase(one.shape.begin());
  return one;
}

Tensor joined(const std::vector<Tensor>& parts) {
  Tensor all = parts.front();
  all.bytes.clear();
  all.shape[0] = 0;
  for (const Tensor& part : parts) {
    all.shape[0] += part.shape[0];
    all.bytes.insert(all.bytes.end(), part.bytes.begin(), part.bytes.end());
  }
  return all;
}

}  // namespace nti
