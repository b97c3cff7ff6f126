// The algorithms: null-text inversion (arXiv 2211.09794, Algorithm 1) and Prompt-to-Prompt (arXiv
// 2208.01626) with local blend, over the exported functions. `nti/inversion` and `nti/editing` are
// the same in Python.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "files.h"
#include "runtime.h"

namespace nti {

using Progress = std::function<void(int done, int total)>;

class Model {
 public:
  Model(const std::string& folder, int threads)
      : manifest_(read_manifest(folder, runtime_format)),
        weights_(folder + "/weights.safetensors"),
        steps_(manifest_.at("steps")),
        edits_(manifest_.at("edits")),
        w_(manifest_.at("guidance_scale").get<float>()),
        runtime_(make_runtime(folder, manifest_, weights_, threads)) {}

  int width() const { return manifest_.at("image").at(3); }
  int height() const { return manifest_.at("image").at(2); }
  int edits() const { return edits_; }

  void invert(const std::string& plan_path, const uint8_t* pixels, const char* image_sha256,
              const std::string& output, const Progress& progress) {
    TensorFile plan = read_plan(plan_path);
    check_output(output, "inversion");
    Tensor cond = states(plan.tensors.tensor("tokens").part(0));
    Tensor uncond = states(plan.tensors.tensor("null_tokens"));
    std::vector<Tensor> pivot = ddim_pivot(encoded(pixels), cond, progress);
    const Json& learning = manifest_.at("optimization");
    const int most = learning.at("inner_steps");
    std::vector<Tensor> latents{pivot[0]}, embeddings;
    Tensor losses = Tensor::zeros("float32", {steps_, most});
    std::fill_n(losses.floats(), losses.count(), std::numeric_limits<float>::quiet_NaN());
    std::vector<int> iterations;
    const Tensor active{"bool", {1}, {1}};
    for (int i = 0; i < steps_; i++) {
      const Tensor &latent = latents.back(), t = timestep(i);
      Tensor eps_cond = run("noise", {latent, t, cond})[0];
      Tensor mean = Tensor::zeros("float32", uncond.shape), square = mean;
      Tensor count = Tensor::zeros("float32", {1});
      const float threshold = learning.at("threshold").at(i);
      int n = 0;
      for (bool on = true; on && n < most; n++) {
        auto made = run("iteration",
                        {uncond, mean, square, count, active, latent, t, eps_cond, pivot[i + 1],
                         coefficient("sample", "of_latent", i), coefficient("sample", "of_eps", i),
                         Tensor::number(w_), Tensor::number(learning.at("learning_rate").at(i))});
        uncond = made[0], mean = made[1], square = made[2], count = made[3];
        const float loss = made[4].floats()[0];
        if (!std::isfinite(loss)) throw std::runtime_error("got a loss that is not finite");
        losses.floats()[i * most + n] = loss;
        on = loss >= threshold;
      }
      iterations.push_back(n);
      latents.push_back(stepped(i, latent, run("noise", {latent, t, uncond})[0], eps_cond, w_));
      embeddings.push_back(uncond);
      progress(steps_ + i + 1, 2 * steps_);
    }
    save(output, plan.header.at("source"), image_sha256, iterations,
         {{"uncond", joined(embeddings)},
          {"pivot", joined(pivot)},
          {"latents", joined(latents)},
          {"losses", losses}});
  }

  void reconstruct(const std::string& inversion_path, const std::string& plan_path,
                   uint8_t* pixels, const Progress& progress) {
    auto [inversion, plan] = read_both(inversion_path, plan_path);
    Tensor cond = states(plan.tensors.tensor("tokens").part(0));
    Tensor latent = inversion.tensors.tensor("latents").part(0);
    const float w = inversion.header.at("guidance_scale");
    for (int i = 0; i < steps_; i++) {
      latent = run("guided", {latent, timestep(i), uncond_of(inversion, i), cond,
                              coefficient("sample", "of_latent", i),
                              coefficient("sample", "of_eps", i), Tensor::number(w)})[0];
      progress(i + 1, steps_);
    }
    decode(latent, pixels);
  }

  void edit(const std::string& inversion_path, const std::string& plan_path, uint8_t* pixels,
            const Progress& progress) {
    auto [inversion, plan] = read_both(inversion_path, plan_path);
    const MappedFile& p = plan.tensors;
    std::vector<Tensor> prompts;
    for (int row = 0; row <= edits_; row++) prompts.push_back(states(p.tensor("tokens").part(row)));
    const Tensor conds = joined(prompts);
    const Tensor visited = inversion.tensors.tensor("latents");
    const float w = inversion.header.at("guidance_scale");
    Tensor edits = joined(std::vector<Tensor>(edits_, visited.part(0))), maps;
    const Json& threshold = plan.header.at("blend_threshold");
    for (int i = 0; i < steps_; i++) {
      // Rows: the edits' unconditional ones, the source's conditional one, the edits'.
      std::vector<Tensor> contexts(edits_, uncond_of(inversion, i));
      contexts.push_back(conds);
      auto made = run("controlled",
                      {joined({edits, visited.part(i), edits}), timestep(i), joined(contexts),
                       p.tensor("source_mix").at(i), p.tensor("own_mix").at(i), p.tensor("source_rows"),
                       p.tensor("self_rows").at(i), p.tensor("words")});
      edits = stepped(i, edits, made[0].part(0, edits_), made[0].part(edits_ + 1, edits_), w);
      if (!threshold.is_null()) {
        if (i == 0) maps = Tensor::zeros("float32", made[1].shape);
        for (int64_t k = 0; k < maps.count(); k++) maps.floats()[k] += made[1].floats()[k];
        if (i >= plan.header.at("blend_from").get<int>())
          edits = run("blend", {edits, visited.part(i + 1), maps, p.tensor("blends"),
                                p.tensor("subtracts"), Tensor::number(threshold)})[0];
      }
      progress(i + 1, steps_);
    }
    for (int e = 0; e < edits_; e++)
      decode(edits.part(e), pixels + static_cast<size_t>(e) * width() * height() * 3);
  }

 private:
  std::vector<Tensor> run(const char* function, const std::vector<Tensor>& inputs) {
    const Json& ports = manifest_.at("functions").at(function).at("inputs");
    for (size_t k = 0; k < ports.size(); k++)
      if (k >= inputs.size() || ports[k].at("shape") != Json(inputs[k].shape) ||
          ports[k].at("dtype") != inputs[k].dtype)
        throw Refused(std::string(function) + ": " + ports[k].at("name").get<std::string>() +
                      ": expected " + ports[k].at("dtype").get<std::string>() + " " +
                      ports[k].at("shape").dump() + ", as was exported");
    return runtime_->run(function, inputs);
  }

  Tensor states(const Tensor& tokens) { return run("text", {tokens})[0]; }

  Tensor timestep(int i) const {
    return Tensor::integer(manifest_.at("schedule").at("timesteps").at(i));
  }

  Tensor coefficient(const char* way, const char* which, int i) const {
    return Tensor::number(manifest_.at("schedule").at(way).at(which).at(i).get<float>());
  }

  std::vector<Tensor> ddim_pivot(Tensor latent, const Tensor& cond, const Progress& progress) {
    std::vector<Tensor> pivot{latent};
    for (int i = steps_ - 1; i >= 0; i--) {
      latent = moved("invert", i, latent, run("noise", {latent, timestep(i), cond})[0]);
      pivot.push_back(latent);
      progress(steps_ - i, 2 * steps_);
    }
    std::reverse(pivot.begin(), pivot.end());
    return pivot;
  }

  // z' = of_latent z + of_eps eps.
  Tensor moved(const char* way, int i, Tensor latent, const Tensor& eps) const {
    const float a = coefficient(way, "of_latent", i).floats()[0];
    const float b = coefficient(way, "of_eps", i).floats()[0];
    for (int64_t k = 0; k < latent.count(); k++) {
      latent.floats()[k] = a * latent.floats()[k] + b * eps.floats()[k];
      if (!std::isfinite(latent.floats()[k]))
        throw std::runtime_error("got values that are not finite at step " + std::to_string(i));
    }
    return latent;
  }

  // The guided step, eps_u + w (eps_c - eps_u).
  Tensor stepped(int i, const Tensor& latent, Tensor eps_u, const Tensor& eps_c, float w) const {
    for (int64_t k = 0; k < eps_u.count(); k++)
      eps_u.floats()[k] += w * (eps_c.floats()[k] - eps_u.floats()[k]);
    return moved("sample", i, latent, eps_u);
  }

  Tensor encoded(const uint8_t* pixels) {
    Tensor image = Tensor::zeros("float32", {1, 3, height(), width()});
    const int64_t plane = int64_t{1} * height() * width();
    for (int64_t k = 0; k < plane; k++)
      for (int c = 0; c < 3; c++)
        image.floats()[c * plane + k] = static_cast<float>(pixels[3 * k + c]) / 127.5f - 1.0f;
    return run("encode", {image})[0];
  }

  void decode(const Tensor& latent, uint8_t* pixels) {
    Tensor image = run("decode", {latent})[0];
    const int64_t plane = int64_t{1} * height() * width();
    for (int64_t k = 0; k < plane; k++)
      for (int c = 0; c < 3; c++) {
        const float value = image.floats()[c * plane + k];
        if (!std::isfinite(value)) throw std::runtime_error("got a picture that is not finite");
        pixels[3 * k + c] = static_cast<uint8_t>(std::nearbyint((value + 1.0f) * 127.5f));
      }
  }

  static Tensor uncond_of(const TensorFile& inversion, int i) {
    const Tensor all = inversion.tensors.tensor("uncond");
    return all.part(all.rows() == 1 ? 0 : i);
  }

  TensorFile read_plan(const std::string& path) const {
    TensorFile plan = read_tensors(path, "plan");
    if (plan.header.value("format", "") != "nti-plan-1")
      throw Refused(path + ": expected a file of `nti plan`");
    if (plan.header.at("steps") != steps_ || plan.header.at("edits") != edits_)
      throw Refused(path + ": got " + plan.header.at("edits").dump() + " edits in " +
                    plan.header.at("steps").dump() + " steps, expected " + std::to_string(edits_) +
                    " in " + std::to_string(steps_) + ", as was exported");
    return plan;
  }

  std::pair<TensorFile, TensorFile> read_both(const std::string& inversion_path,
                                              const std::string& plan_path) const {
    TensorFile inversion = read_inversion(inversion_path), plan = read_plan(plan_path);
    if (plan.header.at("source") != inversion.header.at("prompt"))
      throw Refused(plan_path + ": got a plan for " + plan.header.at("source").dump() +
                    ", expected " + inversion.header.at("prompt").dump() + ", the inversion's");
    return {std::move(inversion), std::move(plan)};
  }

  TensorFile read_inversion(const std::string& path) const {
    TensorFile found = read_tensors(path, "inversion");
    const Json& ours = manifest_.at("inversion");
    for (const char* what : {"model_name", "networks"})
      if (found.header.value(what, Json()) != ours.at(what))
        throw Refused(path + ": was made with another model than was exported");
    for (const std::string name : {"unet", "text"})
      if (found.tensors.view("weights." + name).bytes != weights_.view("fingerprint." + name).bytes)
        throw Refused(path + ": was made with other weights than were exported, or with the same in"
                             " another precision");
    const int64_t latents = found.tensors.tensor("latents").rows();
    const int64_t embeddings = found.tensors.tensor("uncond").rows();
    if (latents != steps_ + 1 || (embeddings != 1 && embeddings != steps_))
      throw Refused(path + ": got " + std::to_string(embeddings) + " null embeddings in " +
                    std::to_string(latents - 1) + " steps, expected " + std::to_string(steps_) +
                    " steps, as was exported");
    const Json &known = manifest_.at("methods"), &method = found.header.at("method");
    if (std::find(known.begin(), known.end(), method) == known.end())
      throw Refused(path + ": was made by " + method.dump() + ", expected one of " + known.dump());
    return found;
  }

  void save(const std::string& output, const Json& prompt, const char* image_sha256,
            const std::vector<int>& iterations, Tensors tensors) const {
    for (const std::string name : {"unet", "text", "vae"})
      tensors.emplace("weights." + name, weights_.tensor("fingerprint." + name));
    Json header = manifest_.at("inversion");
    header["prompt"] = prompt;
    header["iterations"] = iterations;
    if (image_sha256 != nullptr) header["made"]["image_sha256"] = image_sha256;
    header["made"]["versions"]["runtime"] = runtime_format;
    write_tensors(output, "inversion", header, tensors);
  }

  Json manifest_;
  MappedFile weights_;  // lives longer than the runtime, which takes views of it
  int steps_, edits_;
  float w_;
  std::unique_ptr<Runtime> runtime_;
};

}  // namespace nti
