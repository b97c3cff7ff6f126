// The functions as AOTInductor packages, on libtorch.
#include <ATen/Parallel.h>
#include <ATen/ops/from_blob.h>
#include <ATen/Version.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/version.h>

#include <fstream>
#include <iterator>
#include <set>
#include <sstream>

#include "files.h"
#include "runtime.h"

namespace nti {
namespace {

const std::map<std::string, at::ScalarType> TYPES = {
    {"float32", at::kFloat}, {"int64", at::kLong}, {"bool", at::kBool}, {"uint8", at::kByte}};

// A view of a tensor's bytes, row by row: what every package takes, and what the weights are.
at::Tensor view(const Tensor& tensor) {
  return at::from_blob(const_cast<char*>(tensor.bytes.data()), tensor.shape,
                       at::TensorOptions().dtype(TYPES.at(tensor.dtype)));
}

class Packages : public Runtime {
 public:
  Packages(const std::string& folder, const Json& manifest, const MappedFile& weights, int threads)
      : threads_(threads) {
    check(manifest);
    for (const auto& [name, entry] : manifest.at("functions").items()) {
      std::string path = folder + "/" + entry.at("files").at("aoti").get<std::string>();
      auto package = std::make_unique<torch::inductor::AOTIModelPackageLoader>(path, "model", true);
      std::unordered_map<std::string, at::Tensor> constants;
      for (const std::string& weight : package->get_constant_fqns()) {
        const View found = weights.view(weight);
        constants[weight] = at::from_blob(const_cast<char*>(found.bytes.data()), found.shape,
                                          TYPES.at(found.dtype));
      }
      // Not copied: all packages share them. A package that runs without its weights crashes.
      package->load_constants(constants, false, true, true);
      packages_[name] = std::move(package);
    }
  }

  std::vector<Tensor> run(const std::string& function, const std::vector<Tensor>& inputs) override {
    c10::InferenceMode mode;
    at::set_num_threads(threads_);  // of the thread that calls
    std::vector<at::Tensor> given;
    for (const Tensor& input : inputs) given.push_back(view(input));
    std::vector<Tensor> outputs;
    for (const at::Tensor& made : packages_.at(function)->run(given)) {
      at::Tensor plain = made.contiguous();
      const char* bytes = static_cast<const char*>(plain.data_ptr());
      outputs.push_back({name_of(plain.scalar_type()), plain.sizes().vec(),
                         std::vector<char>(bytes, bytes + plain.nbytes())});
    }
    return outputs;
  }

 private:
  // A package is machine code for one libtorch and one kind of processor.
  static void check(const Json& manifest) {
    const std::string torch = manifest.at("versions").at("torch"), here = TORCH_VERSION;
    if (torch.substr(0, torch.find('+')) != here.substr(0, here.find('+')))
      throw Refused("got packages for libtorch " + torch + ", expected " + here +
                    ", which is here: export with the PyTorch of that version");
    const std::set<std::string> known = instructions();
    for (const std::string each : manifest.at("instructions"))
      if (!known.contains(each))
        throw Refused("got packages for a processor with " + each +
                      ", which this one does not have: export on this machine");
  }

  // What this processor knows, as Linux names it.
  static std::set<std::string> instructions() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);)
      if (line.starts_with("flags") || line.starts_with("Features")) {
        std::istringstream words(line.substr(line.find(':') + 1));
        return {std::istream_iterator<std::string>(words), {}};
      }
    return {};
  }

  static std::string name_of(at::ScalarType type) {
    for (const auto& [name, known] : TYPES)
      if (known == type) return name;
    throw std::runtime_error("got an output of an unknown type");
  }

  int threads_;
  std::map<std::string, std::unique_ptr<torch::inductor::AOTIModelPackageLoader>> packages_;
};

}  // namespace

const char* const runtime_format = "aoti";

std::unique_ptr<Runtime> make_runtime(const std::string& folder, const Json& manifest,
                                      const MappedFile& weights, int threads) {
  return std::make_unique<Packages>(folder, manifest, weights, threads);
}

}  // namespace nti
