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

Tensor Tensor::number(float value) {
  Tensor made = zeros("float32", {});
  made.floats()[0] = value;
  return made;
}

Tensor Tensor::integer(int64_t value) {
  Tensor made = zeros("int64", {});
  std::memcpy(made.bytes.data(), &value, sizeof value);
  return made;
}

Tensor Tensor::row(int64_t index) const {
  if (shape.empty() || index < 0 || index >= shape[0])
    throw Refused("got a tensor with less rows than it needs");
  Tensor one{dtype, shape, {}};
  one.shape[0] = 1;
  const long size = static_cast<long>(one.count() * width(dtype));
  one.bytes.assign(bytes.begin() + index * size, bytes.begin() + (index + 1) * size);
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
