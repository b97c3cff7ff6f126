// The functions as ONNX graphs, on onnxruntime's C interface.
//
// That interface is a table of functions whose order never changes; versions add to its end. So the
// few that are used here are called by their place, and no header of onnxruntime is needed.
#include <filesystem>

#include "files.h"
#include "runtime.h"

extern "C" {
struct OrtBase {
  void* const* (*api)(uint32_t version);
  const char* (*version)();
};
const OrtBase* OrtGetApiBase();
}

namespace nti {
namespace {

constexpr uint32_t VERSION = 17;  // of the interface; newer libraries keep it

enum Place {
  MESSAGE = 2, CREATE_ENV = 3, CREATE_SESSION = 7, RUN = 9, CREATE_OPTIONS = 10, SET_THREADS = 24,
  CREATE_TENSOR = 49, CREATE_CPU_MEMORY = 69, RELEASE_ENV = 92, RELEASE_STATUS = 93,
  RELEASE_MEMORY = 94, RELEASE_SESSION = 95, RELEASE_VALUE = 96, RELEASE_OPTIONS = 100
};

class Library {
 public:
  Library() : table_(OrtGetApiBase()->api(VERSION)) {
    if (table_ == nullptr)
      throw Refused(std::string("got onnxruntime ") + OrtGetApiBase()->version() +
                    ", expected 1.17 or newer");
  }

  // Call a function that gives a status, and throw what that says.
  template <class... Arguments>
  void operator()(Place place, Arguments... arguments) const {
    void* status = reinterpret_cast<void* (*)(Arguments...)>(table_[place])(arguments...);
    if (status == nullptr) return;
    std::string message = reinterpret_cast<const char* (*)(void*)>(table_[MESSAGE])(status);
    release(RELEASE_STATUS, status);
    throw std::runtime_error("onnxruntime: " + message);
  }

  void release(Place place, void* object) const {
    if (object != nullptr) reinterpret_cast<void (*)(void*)>(table_[place])(object);
  }

 private:
  void* const* table_;
};

// One object of the library.
class Owned {
 public:
  Owned(const Library& library, Place release) : library_(library), release_(release) {}
  Owned(Owned&& other) noexcept : library_(other.library_), release_(other.release_) {
    std::swap(object_, other.object_);
  }
  ~Owned() { library_.release(release_, object_); }
  void** place() { return &object_; }
  void* get() const { return object_; }

 private:
  const Library& library_;
  Place release_;
  void* object_ = nullptr;
};

// ONNXTensorElementDataType
const std::map<std::string, int> TYPES = {{"float32", 1}, {"uint8", 2}, {"int64", 7}, {"bool", 9}};

struct Graph {
  Owned session;
  Json inputs, outputs;
};

class Graphs : public Runtime {
 public:
  Graphs(const std::string& folder, const Json& functions, int threads)
      : env_(ort_, RELEASE_ENV),
        memory_(ort_, RELEASE_MEMORY),
        options_(ort_, RELEASE_OPTIONS),
        folder_(std::filesystem::absolute(folder)),
        functions_(functions),
        weights_written_(written("weights.safetensors")) {
    for (const auto& [name, entry] : functions.items())
      graphs_written_[name] = written(entry.at("files").at("onnx"));
    ort_(CREATE_ENV, 3 /* errors */, "nti", env_.place());
    ort_(CREATE_CPU_MEMORY, 0 /* device allocator */, 0 /* default type */, memory_.place());
    ort_(CREATE_OPTIONS, options_.place());
    ort_(SET_THREADS, options_.get(), threads);
  }

  std::vector<Tensor> run(const std::string& function, const std::vector<Tensor>& inputs) override {
    const Graph& graph = loaded(function);
    std::vector<Tensor> outputs;
    for (const Json& port : graph.outputs)
      outputs.push_back(Tensor::zeros(port.at("dtype"), port.at("shape")));
    Named given = named(graph.inputs, inputs), made = named(graph.outputs, outputs);
    ort_(RUN, graph.session.get(), static_cast<void*>(nullptr), given.names.data(),
         given.values.data(), given.values.size(), made.names.data(), made.values.size(),
         made.values.data());
    return outputs;
  }

 private:
  struct Named {
    std::vector<const char*> names;
    std::vector<void*> values;
    std::vector<Owned> owned;
  };

  // A graph takes weights into a layout of its own, so it is loaded when it is first called.
  const Graph& loaded(const std::string& function) {
    if (auto found = graphs_.find(function); found != graphs_.end()) return found->second;
    const Json& entry = functions_.at(function);
    Graph graph{Owned(ort_, RELEASE_SESSION), entry.at("inputs"), entry.at("outputs")};
    const std::string file = entry.at("files").at("onnx"), path = folder_ / file;
    if (written(file) != graphs_written_.at(function) ||
        written("weights.safetensors") != weights_written_)
      throw Refused(path + ": was written anew since the folder was opened: open it again");
    ort_(CREATE_SESSION, env_.get(), path.c_str(), options_.get(), graph.session.place());
    return graphs_.emplace(function, std::move(graph)).first->second;
  }

  // When a file was written; the earliest time for one that is not there.
  std::filesystem::file_time_type written(const std::string& file) const {
    std::error_code error;
    return std::filesystem::last_write_time(folder_ / file, error);
  }

  // The library's views of tensors' bytes, into which it also writes what it gives.
  Named named(const Json& ports, const std::vector<Tensor>& tensors) const {
    Named found;
    for (size_t k = 0; k < tensors.size(); k++) {
      const Tensor& tensor = tensors[k];
      Owned value(ort_, RELEASE_VALUE);
      ort_(CREATE_TENSOR, memory_.get(), const_cast<char*>(tensor.bytes.data()),
           tensor.bytes.size(), tensor.shape.data(), tensor.shape.size(), TYPES.at(tensor.dtype),
           value.place());
      found.names.push_back(ports.at(k).at("name").get_ref<const std::string&>().c_str());
      found.values.push_back(value.get());
      found.owned.push_back(std::move(value));
    }
    return found;
  }

  Library ort_;
  Owned env_, memory_, options_;
  std::filesystem::path folder_;
  Json functions_;
  std::filesystem::file_time_type weights_written_;
  std::map<std::string, std::filesystem::file_time_type> graphs_written_;
  std::map<std::string, Graph> graphs_;
};

}  // namespace

const char* const runtime_format = "onnx";

std::unique_ptr<Runtime> make_runtime(const std::string& folder, const Json& manifest,
                                      const MappedFile&, int threads) {
  return std::make_unique<Graphs>(folder, manifest.at("functions"), threads);
}

}  // namespace nti
