// A package (lolrt/aot.py): the compiled functions of a model, and what a stream needs beside them.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <memory>
#include <string>
#include <vector>

namespace lolrt::session {

// The passes of a chunk.
struct Schedule {
  // float64 [passes, 2]: how far a pass's flow is followed back, and the noise level after it (0: no noise).
  at::Tensor steps;
  // float32 [passes + 1, 1, rows, dim]; the last one is the cache pass's.
  at::Tensor modulations;
};

class Package {
 public:
  explicit Package(const std::string &folder);

  std::vector<at::Tensor> run_pass(std::vector<at::Tensor> inputs) { return pass_->run(inputs); }
  std::vector<at::Tensor> run_text(std::vector<at::Tensor> inputs) { return text_->run(inputs); }
  std::vector<at::Tensor> decode_first(std::vector<at::Tensor> inputs) { return decode_first_->run(inputs); }
  std::vector<at::Tensor> decode(std::vector<at::Tensor> inputs) { return decode_->run(inputs); }

  at::ScalarType dtype;
  std::vector<int64_t> latent_size, pages_size, text_size, text_pages_size;
  int64_t sink_frames, recent_frames, chunk_frames, anchor_frames;
  std::string positions, description;
  double amplitude, context_noise;
  at::Tensor increments;  // int64 [1 or layers, heads, pairs], units of 2^-64 turns
  Schedule first, later;
  std::vector<at::Tensor> text_embedding;  // two linear layers: weight, bias, weight, bias
  std::vector<std::string> vae_state;

 private:
  using Function = std::unique_ptr<torch::inductor::AOTIModelPackageLoader>;
  Function pass_, text_, decode_first_, decode_;
};

}  // namespace lolrt::session
