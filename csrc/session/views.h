// Tensors of torch as the C ABI has them, and the other way round.
#pragma once

#include "error.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

namespace lolrt::session {

// A view of a tensor, which must outlive it: float32, int64 or uint8 on the CPU.
class View {
 public:
  explicit View(const at::Tensor &x) : shape_(x.sizes().vec()), strides_(x.strides().vec()) {
    view_.data = x.data_ptr();
    view_.device = {LOLRT_DEVICE_CPU, 0};
    view_.ndim = static_cast<int32_t>(x.dim());
    view_.dtype = x.scalar_type() == at::kFloat  ? lolrt_dtype{LOLRT_CODE_FLOAT, 32, 1}
                  : x.scalar_type() == at::kByte ? lolrt_dtype{LOLRT_CODE_UINT, 8, 1}
                                                 : lolrt_dtype{LOLRT_CODE_INT, 64, 1};
    view_.shape = shape_.data();
    view_.strides = strides_.data();
  }
  View(const View &) = delete;

  lolrt_tensor &tensor() { return view_; }

 private:
  std::vector<int64_t> shape_, strides_;
  lolrt_tensor view_{};
};

// A copy of a prompt's embeddings: float32 [text tokens, text_dim].
inline at::Tensor prompt_of(const lolrt_tensor *given, at::IntArrayRef text_size) {
  expect(given != nullptr, "prompt is NULL; expected embeddings of a text");
  const auto rows = static_cast<long long>(text_size[0]), dim = static_cast<long long>(text_size[1]);
  expect(given->dtype.code == LOLRT_CODE_FLOAT && given->dtype.bits == 32 && given->dtype.lanes == 1 &&
             given->device.type == LOLRT_DEVICE_CPU && given->ndim == 2,
         "prompt is no matrix of float32 on the CPU; expected [1 to %lld text tokens, %lld]", rows, dim);
  expect(given->shape[0] >= 1 && given->shape[0] <= rows && given->shape[1] == dim,
         "prompt is [%lld, %lld]; expected [1 to %lld text tokens, %lld]", static_cast<long long>(given->shape[0]),
         static_cast<long long>(given->shape[1]), rows, dim);
  const at::IntArrayRef shape(given->shape, 2);
  char *data = static_cast<char *>(given->data) + given->byte_offset;
  const at::Tensor view =
      given->strides == nullptr ? at::from_blob(data, shape) : at::from_blob(data, shape, at::IntArrayRef(given->strides, 2));
  expect(view.isfinite().all().item<bool>(),
         "prompt has values that are not finite: the text encoder, or the file that it came from, is damaged");
  return view.clone();
}

}  // namespace lolrt::session
