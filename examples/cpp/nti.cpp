// The C interface: handles, and what is thrown as a status and a message.
#include "nti.h"

#include <new>

#include "algorithm.h"

struct nti_model {
  std::unique_ptr<nti::Model> model;
  std::string error;
};

namespace {

// Run something on a handle, and turn what it throws into a status and a message.
template <class Call>
nti_status guarded(nti_model* handle, Call call) {
  if (handle == nullptr) return NTI_REFUSED;
  handle->error.clear();
  try {
    call();
    return NTI_OK;
  } catch (const nti::Refused& error) {
    handle->error = error.what();
    return NTI_REFUSED;
  } catch (const nti::Json::exception& error) {
    handle->error = std::string("a file lacks what is expected of it: ") + error.what();
    return NTI_REFUSED;
  } catch (const std::exception& error) {
    handle->error = error.what();
  } catch (...) {
    handle->error = "an unknown error";
  }
  return NTI_FAILED;
}

nti::Model& opened(nti_model* handle) {
  if (!handle->model) throw nti::Refused("the model was not opened");
  return *handle->model;
}

nti::Progress told(nti_progress progress, void* user) {
  return [=](int done, int total) {
    if (progress != nullptr && progress(user, done, total) != 0)
      throw std::runtime_error("stopped after step " + std::to_string(done));
  };
}

}  // namespace

nti_status nti_open(const char* folder, int threads, nti_model** model) {
  *model = new (std::nothrow) nti_model;
  return guarded(*model, [&] {
    if (threads < 1) throw nti::Refused("threads: expected 1 or more");
    (*model)->model = std::make_unique<nti::Model>(folder, threads);
  });
}

void nti_close(nti_model* model) { delete model; }

const char* nti_last_error(const nti_model* model) {
  return model == nullptr ? "got no handle" : model->error.c_str();
}

nti_status nti_size(nti_model* model, int* width, int* height, int* edits) {
  return guarded(model, [&] {
    *width = opened(model).width(), *height = opened(model).height();
    *edits = opened(model).edits();
  });
}

nti_status nti_invert(nti_model* model, const char* plan, const uint8_t* pixels,
                      const char* image_sha256, const char* inversion, nti_progress progress,
                      void* user) {
  return guarded(model, [&] {
    opened(model).invert(plan, pixels, image_sha256, inversion, told(progress, user));
  });
}

nti_status nti_reconstruct(nti_model* model, const char* inversion, const char* plan,
                           uint8_t* pixels, nti_progress progress, void* user) {
  return guarded(model, [&] {
    opened(model).reconstruct(inversion, plan, pixels, told(progress, user));
  });
}

nti_status nti_edit(nti_model* model, const char* inversion, const char* plan, uint8_t* pixels,
                    nti_progress progress, void* user) {
  return guarded(model,
                 [&] { opened(model).edit(inversion, plan, pixels, told(progress, user)); });
}
