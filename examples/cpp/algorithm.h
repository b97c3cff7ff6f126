// The algorithms: null-text inversion (arXiv 2211.09794, Algorithm 1) and Prompt-to-Prompt (arXiv
// 2208.01626) with local blend, over the exported functions. `nti/inversion` and `nti/editing` are
// the same in Python.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <set>

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
    Tensor cond = states(plan.tensors.at("tokens").row(0));
    Tensor uncond = states(plan.tensors.at("null_tokens"));
    std::vector<Tensor> pivot = ddim_pivot(encoded(pixels), cond, progress);
    const Json& learning = manifest_.at("optimization");
    const int most = learning.at("inner_steps");
    std::vector<Tensor> latents{pivot[0]}, embeddings;
    Tensor losses = Tensor::zeros("float32", {steps_, most});
    std::fill_n(losses.floats(), losses.count(), std::numeric_limits<float>::quiet_NaN());
    std::vector<int> iterations;
    Tensor active = Tensor::zeros("bool", {1});
    active.bytes[0] = 1;
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
    Tensor cond = states(plan.tensors.at("tokens").row(0));
    Tensor latent = inversion.tensors.at("latents").row(0);
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
    const Tensors& p = plan.tensors;
    std::vector<Tensor> conds;
    for (int row = 0; row <= edits_; row++) conds.push_back(states(p.at("tokens").row(row)));
    const Tensor& visited = inversion.tensors.at("latents");
    const float w = inversion.header.at("guidance_scale");
    std::vector<Tensor> edits(edits_, visited.row(0));
    const bool blends = !plan.header.at("blend_threshold").is_null();
    const int blend_from = plan.header.at("blend_from");
    Tensor maps;
    for (int i = 0; i < steps_; i++) {
      // Rows: the edits' unconditional ones, the source's conditional one, the edits'.
      std::vector<Tensor> latents = edits, contexts(edits_, uncond_of(inversion, i));
      latents.push_back(visited.row(i));
      latents.insert(latents.end(), edits.begin(), edits.end());
      contexts.insert(contexts.end(), conds.begin(), conds.end());
      Tensor self_rows = p.at("self_rows").row(i);
      self_rows.shape.erase(self_rows.shape.begin());
      auto made = run("controlled", {joined(latents), timestep(i), joined(contexts),
                                     of_step(p.at("source_mix"), i), of_step(p.at("own_mix"), i),
                                     p.at("source_rows"), self_rows, p.at("words")});
      for (int e = 0; e < edits_; e++)
        edits[e] = stepped(i, edits[e], made[0].row(e), made[0].row(edits_ + 1 + e), w);
      if (blends) {
        if (maps.bytes.empty()) maps = Tensor::zeros("float32", made[1].shape);
        for (int64_t k = 0; k < maps.count(); k++) maps.floats()[k] += made[1].floats()[k];
        if (i >= blend_from)
          for (int e = 0; e < edits_; e++) blend(edits[e], visited.row(i + 1), maps, e, plan);
      }
      progress(i + 1, steps_);
    }
    for (int e = 0; e < edits_; e++)
      decode(edits[e], pixels + static_cast<size_t>(e) * width() * height() * 3);
  }

 private:
  std::vector<Tensor> run(const char* function, const std::vector<Tensor>& inputs) {
    const Json& ports = manifest_.at("functions").at(function).at("inputs");
    for (size_t k = 0; k < ports.size(); k++)
      if (k >= inputs.size() || ports[k].at("shape") != Json(inputs[k].shape) ||
          ports[k].at("dtype") != inputs[k].dtype)
        throw Refused(std::string(function) + ": " + ports[k].at("name").get<std::string>() +
                      " is not of the shape that was exported");
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
      Tensor eps = run("noise", {latent, timestep(i), cond})[0];
      latent = moved("invert", i, latent, eps);
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
        if (!std::isfinite(image.floats()[c * plane + k]))
          throw std::runtime_error("got a picture that is not finite");
        float value = (std::clamp(image.floats()[c * plane + k], -1.0f, 1.0f) + 1.0f) * 127.5f;
        pixels[3 * k + c] = static_cast<uint8_t>(std::nearbyint(value));
      }
  }

  // Where a word's summed map is above a share of its maximum, at the latent's size.
  std::vector<bool> region(const float* map, int h, int w, bool pool, float threshold) const {
    std::vector<float> x(map, map + h * w);
    const int reach = pool ? manifest_.at("blend").at("pool").get<int>() / 2 : 0;
    for (int i = 0; i < h; i++)
      for (int j = 0; j < w; j++)
        for (int y = std::max(0, i - reach); y <= std::min(h - 1, i + reach); y++)
          for (int z = std::max(0, j - reach); z <= std::min(w - 1, j + reach); z++)
            x[i * w + j] = std::max(x[i * w + j], map[y * w + z]);
    const float most = *std::max_element(x.begin(), x.end());
    const int height = manifest_.at("latent").at(2), width = manifest_.at("latent").at(3);
    std::vector<bool> found;
    for (int i = 0; i < height; i++)
      for (int j = 0; j < width; j++)
        found.push_back(x[i * h / height * w + j * w / width] > threshold * most);
    return found;
  }

  // Local blend: outside of its words' regions an edit's latent is the source's.
  void blend(Tensor& edit, const Tensor& source, const Tensor& maps, int e,
             const TensorFile& plan) const {
    const float threshold = plan.header.at("blend_threshold");
    const int h = static_cast<int>(maps.shape[2]), w = static_cast<int>(maps.shape[3]);
    std::vector<bool> keep, drop;
    for (int kind = 0; kind < 2; kind++) {
      const int column = 2 * e + kind, columns = 2 * edits_;
      auto of = [&](int row) { return maps.floats() + (row * columns + column) * h * w; };
      std::vector<bool> mask = region(of(1 + e), h, w, kind == 0, threshold);
      std::vector<bool> of_source = region(of(0), h, w, kind == 0, threshold);
      for (size_t k = 0; k < mask.size(); k++) mask[k] = mask[k] || of_source[k];
      (kind == 0 ? keep : drop) = mask;
    }
    const bool blends = plan.tensors.at("blends").bytes[e];
    const bool subtracts = plan.tensors.at("subtracts").bytes[e];
    for (int64_t k = 0; k < edit.count(); k++) {
      const size_t at = k % keep.size();
      if (!((keep[at] || !blends) && !(drop[at] && subtracts)))
        edit.floats()[k] = source.floats()[k];
    }
  }

  static Tensor of_step(const Tensor& all, int i) {
    Tensor one = all.row(i);
    one.shape.erase(one.shape.begin());
    return one;
  }

  static Tensor uncond_of(const TensorFile& inversion, int i) {
    const Tensor& all = inversion.tensors.at("uncond");
    return all.row(all.shape[0] == 1 ? 0 : i);
  }

  static void expect(const std::string& path, const Tensors& tensors, const std::string& name,
                     const std::vector<int64_t>& shape, const std::string& dtype = "float32") {
    auto found = tensors.find(name);
    if (found == tensors.end() || found->second.shape != shape || found->second.dtype != dtype)
      throw Refused(path + ": " + name + ": expected " + dtype + " " + Json(shape).dump() +
                    ", as was exported");
  }

  TensorFile read_plan(const std::string& path) const {
    TensorFile plan = read_tensors(path, "plan");
    if (plan.header.value("format", "") != "nti-plan-1")
      throw Refused(path + ": expected a file of `nti plan`");
    if (plan.header.at("steps") != steps_ || plan.header.at("edits") != edits_)
      throw Refused(path + ": got " + plan.header.at("edits").dump() + " edits in " +
                    plan.header.at("steps").dump() + " steps, expected " + std::to_string(edits_) +
                    " in " + std::to_string(steps_) + ", as was exported");
    const Json& ports = manifest_.at("functions").at("controlled").at("inputs");
    const int64_t tokens = manifest_.at("context").at(1), rows = 2 * edits_ + 1;
    expect(path, plan.tensors, "tokens", {1 + edits_, tokens}, "int64");
    expect(path, plan.tensors, "null_tokens", {1, tokens}, "int64");
    expect(path, plan.tensors, "source_mix", {steps_, edits_, tokens, tokens});
    expect(path, plan.tensors, "own_mix", {steps_, edits_, tokens});
    expect(path, plan.tensors, "source_rows", {edits_}, "int64");
    expect(path, plan.tensors, "self_rows", {steps_, rows}, "int64");
    expect(path, plan.tensors, "words", ports.back().at("shape"));
    expect(path, plan.tensors, "blends", {edits_}, "uint8");
    expect(path, plan.tensors, "subtracts", {edits_}, "uint8");
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
    const Tensors& t = found.tensors;
    const Json &z = manifest_.at("latent"), &c = manifest_.at("context");
    expect(path, t, "pivot", {steps_ + 1, z[1], z[2], z[3]});
    expect(path, t, "latents", {steps_ + 1, z[1], z[2], z[3]});
    const int64_t embeddings = t.at("uncond").shape.empty() ? 0 : t.at("uncond").shape[0];
    expect(path, t, "uncond", {embeddings == 1 ? 1 : steps_, c[1], c[2]});
    if (found.header.value("model_name", "") != manifest_.at("model_name") ||
        found.header.value("networks", Json()) !=
            Json::parse(manifest_.at("networks").get<std::string>()))
      throw Refused(path + ": was made with another model than was exported");
    for (const char* name : {"unet", "text"})
      if (t.at(std::string("weights.") + name).bytes !=
          weights_.tensor(std::string("fingerprint.") + name).bytes)
        throw Refused(path + ": was made with other weights than were exported, or with the same in"
                             " another precision");
    static const std::set<std::string> methods = {"null-text", "null-text-fast", "null-text-global",
                                                  "null-text-random-pivot", "negative-prompt",
                                                  "ddim"};
    const std::string method = found.header.at("method");
    if (!methods.contains(method))
      throw Refused(path + ": was made by " + method + ", whose edits this program does not know");
    return found;
  }

  void save(const std::string& output, const Json& prompt, const char* image_sha256,
            const std::vector<int>& iterations, Tensors tensors) const {
    for (const char* name : {"unet", "text", "vae"})
      tensors.emplace(std::string("weights.") + name,
                      weights_.tensor(std::string("fingerprint.") + name));
    const Json size = {width(), height()}, box = {0, 0, width(), height()};
    const Json& versions = manifest_.at("versions");
    const Json& learning = manifest_.at("optimization");
    Json sha = image_sha256 == nullptr ? Json() : Json(image_sha256);
    write_tensors(
        output, "inversion",
        {{"format", "nti-inversion-3"},
         {"prompt", prompt},
         {"method", "null-text"},
         {"guidance_scale", manifest_.at("guidance_scale")},
         {"model_name", manifest_.at("model_name")},
         {"placement", {{"original", size}, {"size", size}, {"taken", box}, {"filled", box}}},
         {"made",
          {{"image_sha256", sha},
           {"settings",
            {{"method", "null-text"},
             {"steps", steps_},
             {"guidance_scale", manifest_.at("guidance_scale")},
             {"inner_steps", learning.at("inner_steps")},
             {"learning_rate", learning.at("learning_rate")},
             {"threshold", learning.at("threshold")}}},
           {"versions", {{"nti", versions.at("nti")}, {"runtime", runtime_format}}}}},
         {"networks", Json::parse(manifest_.at("networks").get<std::string>())},
         {"iterations", iterations}},
        tensors);
  }

  Json manifest_;
  MappedFile weights_;  // lives longer than the runtime, which takes views of it
  int steps_, edits_;
  float w_;
  std::unique_ptr<Runtime> runtime_;
};

}  // namespace nti
