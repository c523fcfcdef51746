// The state of one stream, and the passes that make its next chunk: what lolrt/session/session.py does. And its decoder.
#pragma once

#include "package.h"
#include "window.h"

#include "lolrt/session.h"

#include <optional>

namespace lolrt::session {

// From one text to another: chunk k of `chunks` is made from (1 - k / chunks) * start + (k / chunks) * target.
struct PromptSwitch {
  at::Tensor start, target;
  int64_t chunks, chunks_done;
  lolrt_recache recache;

  at::Tensor text() const;
  bool done() const { return chunks_done >= chunks; }
};

struct Chunk {
  int64_t first_frame;
  at::Tensor latents, frames;
};

class Stream {
 public:
  Stream(const std::string &package, const lolrt_tensor *prompt, uint64_t seed);
  // Goes on from a snapshot.
  Stream(const std::string &package, const std::string &snapshot);

  Chunk next_chunk();
  void set_prompt(const lolrt_tensor *prompt, lolrt_recache recache, int64_t over_chunks);
  void save(const std::string &path) const;

 private:
  explicit Stream(const std::string &package);

  void use_text(const at::Tensor &prompt);
  void follow_switch();
  // tables: Window::tables.
  at::Tensor pass(const at::Tensor &sample, const at::Tensor &modulation, const std::vector<at::Tensor> &tables);
  at::Tensor noise(int64_t first_frame, int64_t step) const;
  at::Tensor sampler_step(const at::Tensor &sample, const at::Tensor &velocity, const Schedule &schedule, int64_t k,
                          int64_t first_frame) const;
  at::Tensor decode(const at::Tensor &latents, int64_t first_frame);

  Package package_;
  uint64_t seed_ = 0;
  int64_t next_frame_ = 0;
  Window window_;
  at::Tensor pages_, text_pages_, latents_;  // latents_: the inputs of the cache pass, by page
  std::vector<at::Tensor> layer_pages_, text_layer_pages_;
  at::Tensor prompt_;  // the embeddings that the text's pages are made from
  std::optional<PromptSwitch> switch_;
  std::vector<at::Tensor> vae_state_;  // in the order of its names; empty at the start
  bool between_chunks_ = true, half_decoded_ = false;
};

}  // namespace lolrt::session
