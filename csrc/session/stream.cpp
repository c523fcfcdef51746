#include "stream.h"

#include "error.h"
#include "json.h"
#include "snapshot.h"
#include "views.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/lerp.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/pad.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace lolrt::session {

namespace {

at::Tensor with_rows(const at::Tensor &text, int64_t rows) { return at::pad(text, {0, 0, 0, rows - text.size(0)}); }

at::Tensor own_pages(const ChunkPages &pages) { return at::tensor(pages.own_pages(), at::kInt).to(at::kLong); }

void check_finite(const at::Tensor &sum, const char *where, int64_t first_frame, int64_t frames) {
  if (std::isfinite(sum.item<float>())) return;
  throw Failure(LOLRT_INTERNAL, "latent frames " + std::to_string(first_frame) + " to " +
                                    std::to_string(first_frame + frames - 1) + " are not finite from " + where +
                                    " on: the model's numbers have gone beyond its dtype");
}

}  // namespace

at::Tensor PromptSwitch::text() const {
  const int64_t rows = std::max(start.size(0), target.size(0));
  return at::lerp(with_rows(start, rows), with_rows(target, rows),
                  static_cast<double>(chunks_done + 1) / static_cast<double>(chunks));
}

Stream::Stream(const std::string &package) : package_(package), window_(package_) {
  // Zeros: what no pass has written yet is never read, but neither should it be what another program left.
  pages_ = at::zeros(package_.pages_size, package_.dtype);
  text_pages_ = at::zeros(package_.text_pages_size, package_.dtype);
  layer_pages_ = pages_.unbind(0);
  text_layer_pages_ = text_pages_.unbind(0);
  const auto &size = package_.latent_size;
  latents_ = at::zeros({package_.pages_size[1], size[0], size[1], size[2]});
}

Stream::Stream(const std::string &package, const lolrt_tensor *prompt, uint64_t seed) : Stream(package) {
  seed_ = seed;
  use_text(prompt_of(prompt, package_.text_size));
}

void Stream::set_prompt(const lolrt_tensor *prompt, lolrt_recache recache, int64_t over_chunks) {
  expect(over_chunks >= 1, "over_chunks is %lld; expected 1 or more", static_cast<long long>(over_chunks));
  expect(recache >= LOLRT_RECACHE_WINDOW && recache <= LOLRT_RECACHE_NONE, "recache is %d; expected a lolrt_recache",
         static_cast<int>(recache));
  switch_ = PromptSwitch{prompt_, prompt_of(prompt, package_.text_size), over_chunks, 0, recache};
}

void Stream::use_text(const at::Tensor &prompt) {
  const auto &layers = package_.text_embedding;
  const at::Tensor rows = with_rows(prompt.to(package_.dtype), package_.text_size[0]);
  const at::Tensor hidden = at::gelu(at::linear(rows, layers[0], layers[1]), "tanh");
  std::vector<at::Tensor> inputs{at::linear(hidden, layers[2], layers[3])};
  inputs.insert(inputs.end(), text_layer_pages_.begin(), text_layer_pages_.end());
  package_.run_text(inputs);
  prompt_ = prompt;
}

// Uses the text of the next chunk, and runs cached frames again with it.
void Stream::follow_switch() {
  if (!switch_ || switch_->done()) return;
  use_text(switch_->text());
  if (switch_->recache == LOLRT_RECACHE_NONE) return;
  const int64_t first = switch_->recache == LOLRT_RECACHE_SINKS ? 0 : package_.sink_frames;
  for (const ChunkPages &pages : window_.chunks(first))
    pass(latents_.index_select(0, own_pages(pages)), package_.later.modulations[-1], window_.tables(pages));
}

at::Tensor Stream::pass(const at::Tensor &sample, const at::Tensor &modulation, const std::vector<at::Tensor> &tables) {
  std::vector<at::Tensor> inputs{sample, modulation};
  inputs.insert(inputs.end(), tables.begin(), tables.end());
  inputs.push_back(text_pages_);
  inputs.insert(inputs.end(), layer_pages_.begin(), layer_pages_.end());
  return package_.run_pass(inputs)[0];
}

at::Tensor Stream::noise(int64_t first_frame, int64_t step) const {
  const auto &size = package_.latent_size;
  const at::Tensor all = at::empty({package_.chunk_frames, size[0], size[1], size[2]});
  for (int64_t i = 0; i < package_.chunk_frames; ++i) {
    const at::Tensor own = all[i];
    View view(own);
    require(lolrt_normal(seed_, first_frame + i, static_cast<int32_t>(step), &view.tensor()));
  }
  return all;
}

at::Tensor Stream::sampler_step(const at::Tensor &sample, const at::Tensor &velocity, const Schedule &schedule, int64_t k,
                                int64_t first_frame) const {
  const double *step = schedule.steps.const_data_ptr<double>() + 2 * k;
  const at::Tensor flat = sample.flatten(), flow = velocity.flatten(), out = at::empty_like(flat);
  at::Tensor fresh;
  if (step[1] != 0) fresh = noise(first_frame, k + 1).flatten();
  View sample_view(flat), flow_view(flow), out_view(out);
  std::optional<View> fresh_view;
  if (fresh.defined()) fresh_view.emplace(fresh);
  lolrt_sampler_step_desc desc{};
  desc.struct_size = sizeof desc;
  desc.level = step[0];
  desc.after = step[1];
  desc.sample = &sample_view.tensor();
  desc.velocity = &flow_view.tensor();
  desc.noise = fresh_view ? &fresh_view->tensor() : nullptr;
  desc.out = &out_view.tensor();
  require(lolrt_sampler_step(&desc));
  return out.view_as(sample);
}

Chunk Stream::next_chunk() {
  expect(!half_decoded_, "the decoder failed within a chunk, and its state is lost: open the session again");
  between_chunks_ = false;
  follow_switch();
  const Schedule &schedule = next_frame_ == 0 ? package_.first : package_.later;
  const ChunkPages pages = window_.advance(next_frame_);
  const std::vector<at::Tensor> tables = window_.tables(pages);
  const int64_t passes = schedule.steps.size(0);
  at::Tensor latents = noise(next_frame_, 0);
  for (int64_t k = 0; k < passes; ++k) {
    const at::Tensor velocity = pass(latents, schedule.modulations[k], tables);
    check_finite(velocity.sum(), ("pass " + std::to_string(k + 1)).c_str(), next_frame_, package_.chunk_frames);
    latents = sampler_step(latents, velocity, schedule, k, next_frame_);
  }
  at::Tensor clean = latents;
  if (package_.context_noise != 0)
    clean = (1 - package_.context_noise) * latents + package_.context_noise * noise(next_frame_, passes);
  // The cache pass: it writes the K and V of the clean chunk, which later chunks attend to.
  check_finite(pass(clean, schedule.modulations[passes], tables).sum(), "the cache pass", next_frame_, package_.chunk_frames);
  latents_.index_copy_(0, own_pages(pages), clean);
  const Chunk chunk{next_frame_, latents, decode(latents, next_frame_)};
  next_frame_ += package_.chunk_frames;
  if (switch_) ++switch_->chunks_done;
  between_chunks_ = true;
  return chunk;
}

at::Tensor Stream::decode(const at::Tensor &latents, int64_t first_frame) {
  half_decoded_ = true;
  std::vector<at::Tensor> frames;
  for (const at::Tensor &latent : latents.split(1)) {
    std::vector<at::Tensor> made;
    if (vae_state_.empty()) {
      made = package_.decode_first({latent});
      for (size_t i = 2; i < made.size(); ++i) vae_state_.push_back(made[i].contiguous());
    } else {
      std::vector<at::Tensor> inputs{latent};
      inputs.insert(inputs.end(), vae_state_.begin(), vae_state_.end());
      made = package_.decode(inputs);
    }
    frames.push_back(made[0]);
    check_finite(made[1], "their decoding", first_frame, latents.size(0));
  }
  half_decoded_ = false;
  return at::cat(frames).contiguous();
}

void Stream::save(const std::string &path) const {
  expect(between_chunks_, "the last chunk failed: make it before the session is saved");
  const ChunkPages window = window_.read();
  const at::Tensor held = at::tensor(window.pages, at::kInt).to(at::kLong);
  Snapshot snapshot;
  auto &x = snapshot.tensors;
  x["next_frame"] = at::scalar_tensor(next_frame_, at::kLong);
  x["prompt_embeds"] = prompt_.contiguous();
  x["inputs"] = latents_.index_select(0, held);
  x["cache.frames"] = at::tensor(window.frames, at::kLong);
  x["cache.pages"] = pages_.index_select(1, held);
  x["cache.on_cuda"] = at::scalar_tensor(false, at::kBool);
  if (switch_ && !switch_->done()) {
    x["switch.start"] = switch_->start.contiguous();
    x["switch.target"] = switch_->target.contiguous();
    x["switch.counts"] = at::tensor({switch_->chunks, switch_->chunks_done, static_cast<int64_t>(switch_->recache)}, at::kLong);
  }
  for (size_t i = 0; i < vae_state_.size(); ++i) x["vae." + package_.vae_state[i]] = vae_state_[i];
  // The package's description is that of a stream with seed 0.
  const Json described = Json::parse(package_.description);
  const std::string_view config = described["config"].raw, zero = described["config"]["seed"].raw;
  const auto at = static_cast<size_t>(zero.data() - config.data());
  const std::string own =
      std::string(config.substr(0, at)) + std::to_string(seed_) + std::string(config.substr(at + zero.size()));
  snapshot.description = "{\"config\": " + own +
                         ", \"format\": 1, \"kind\": \"full\", \"model\": " + std::string(described["model"].raw) +
                         ", \"prompt\": null, \"run\": {}}";
  snapshot.write(path);
}

Stream::Stream(const std::string &package, const std::string &path) : Stream(package) {
  const Snapshot snapshot = Snapshot::read(path);
  const Json saved = Json::parse(snapshot.description), here = Json::parse(package_.description);
  for (const char *part : {"model", "config"}) {
    const std::string found = difference(saved[part], here[part], "seed", part);
    expect(found.empty(), "%s is the state of another stream: %s", path.c_str(), found.c_str());
  }
  expect(saved["kind"].text == "full", "%s is no full snapshot, and has no pages: save a full one", path.c_str());
  const auto tensor = [&](const std::string &name, at::ScalarType type, at::IntArrayRef shape) {
    const auto found = snapshot.tensors.find(name);
    // -1 in a shape stands for any size.
    bool fits = found != snapshot.tensors.end() && found->second.scalar_type() == type &&
                found->second.dim() == static_cast<int64_t>(shape.size());
    for (size_t i = 0; fits && i < shape.size(); ++i)
      fits = shape[i] < 0 || found->second.size(static_cast<int64_t>(i)) == shape[i];
    expect(fits, "%s lacks %s, or has it in another size", path.c_str(), name.c_str());
    return found->second;
  };
  expect(snapshot.tensors.count("start") == 0, "%s is that of a stream that begins with given frames, which no session has",
         path.c_str());
  const std::string seed(saved["config"]["seed"].raw);
  expect(seed != "null", "%s is that of a stream whose noise is a function", path.c_str());
  seed_ = std::strtoull(seed.c_str(), nullptr, 10);
  next_frame_ = tensor("next_frame", at::kLong, {}).item<int64_t>();
  const at::Tensor frames = tensor("cache.frames", at::kLong, {-1});
  const int64_t count = frames.size(0);
  expect(next_frame_ % package_.chunk_frames == 0 && count % package_.chunk_frames == 0,
         "%s is that of a stream that began with a shorter chunk, which no session does", path.c_str());
  window_.restore(std::vector<int64_t>(frames.const_data_ptr<int64_t>(), frames.const_data_ptr<int64_t>() + count));
  const at::Tensor held = at::tensor(window_.read().pages, at::kInt).to(at::kLong);
  pages_.index_copy_(1, held, tensor("cache.pages", package_.dtype, {package_.pages_size[0], count, package_.pages_size[2]}));
  const auto &size = package_.latent_size;
  latents_.index_copy_(0, held, tensor("inputs", at::kFloat, {count, size[0], size[1], size[2]}));
  const auto text = [&](const std::string &name) {
    const auto found = snapshot.tensors.find(name);
    const bool half = found != snapshot.tensors.end() && found->second.scalar_type() == at::kBFloat16;  // as an encoder gave it
    const at::Tensor rows = tensor(name, half ? at::kBFloat16 : at::kFloat, {-1, package_.text_size[1]});
    expect(rows.size(0) >= 1 && rows.size(0) <= package_.text_size[0], "%s has %s in another size", path.c_str(), name.c_str());
    return rows.to(at::kFloat);
  };
  if (snapshot.tensors.count("switch.counts")) {
    const at::Tensor counts = tensor("switch.counts", at::kLong, {3});
    const int64_t *value = counts.const_data_ptr<int64_t>();
    switch_ = PromptSwitch{text("switch.start"), text("switch.target"), value[0], value[1], static_cast<lolrt_recache>(value[2])};
  }
  if (next_frame_ > 0)
    for (const std::string &name : package_.vae_state) {
      const auto found = snapshot.tensors.find("vae." + name);
      expect(found != snapshot.tensors.end(), "%s lacks vae.%s", path.c_str(), name.c_str());
      vae_state_.push_back(found->second);
    }
  use_text(text("prompt_embeds"));
}

}  // namespace lolrt::session
