// Checked access to the tensor views of a descriptor.
#pragma once

#include "lolrt/lolrt.h"

#include <cstdint>
#include <initializer_list>

namespace lolrt {

enum class DType { float32, bfloat16, float16, float8_e4m3fn, int8, uint8, int32, int64, uint64 };

constexpr int64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::float8_e4m3fn:
    case DType::int8:
    case DType::uint8:
      return 1;
    case DType::bfloat16:
    case DType::float16:
      return 2;
    case DType::float32:
    case DType::int32:
      return 4;
    case DType::int64:
    case DType::uint64:
      return 8;
  }
  return 0;
}

// One of the element types that kernels on a device of type `device_type` take: float32 or bfloat16 on the CPU, bfloat16 or
// float16 on CUDA. Fails for any other, naming `what`.
DType floating_type(const char *what, int32_t device_type, lolrt_dtype dtype);

// The same, or what pages may also be of: int8 on the CPU, float8_e4m3fn on CUDA.
DType page_type(const char *what, int32_t device_type, lolrt_dtype dtype);

// One dimension that a view must have. A size of `any` accepts every size from 1 on.
struct Dim {
  static constexpr int64_t any = -1;
  const char *name;
  int64_t size = any;
};

enum class Layout {
  contiguous,  // row major, no gaps
  strided      // innermost dimension contiguous, outer ones free
};

// The addresses [begin, end) that a view's elements lie in, with whatever lies between them.
struct Span {
  uintptr_t begin = 0, end = 0;
};

// A view that has passed its checks; strides in elements. No product of an index and a stride passes 64 bits, in elements or
// bytes.
class View {
 public:
  static constexpr int max_dims = 6;

  int64_t size(int dim) const { return size_[dim]; }
  int64_t stride(int dim) const { return stride_[dim]; }
  int64_t elements() const;
  Span span() const { return span_; }
  template <class T>
  T *data() const {
    return static_cast<T *>(data_);
  }

 private:
  friend class Checker;
  void *data_ = nullptr;
  int64_t size_[max_dims] = {};
  int64_t stride_[max_dims] = {};
  Span span_;
};

enum class Devices { cpu, cpu_and_cuda };

// Checks the views of one operation; every message starts with its name.
class Checker {
 public:
  explicit Checker(const char *operation, Devices devices = Devices::cpu) : operation_(operation), devices_(devices) {}

  // Fails unless `tensor` is on the operation's device and has the dtype, dimensions and layout asked for.
  View operator()(const char *name, const lolrt_tensor *tensor, DType dtype, std::initializer_list<Dim> dims,
                  Layout layout = Layout::contiguous) const;
  // The same for a tensor that is written: its elements must not share memory, nor its dimensions interleave.
  View output(const char *name, const lolrt_tensor *tensor, DType dtype, std::initializer_list<Dim> dims,
              Layout layout = Layout::contiguous) const;
  // Fails where `index`, whose numbers have been checked and say what is written or read, lies in memory that the op writes
  // first.
  void not_in(const char *index_name, Span index, const char *written_name, Span written) const;
  // The tensor's device becomes that of the operation; fails where that has no kernels for it.
  void on_device_of(const char *name, const lolrt_tensor *tensor);
  // The same, and the tensor's element type, one that its device has kernels for.
  DType type(const char *name, const lolrt_tensor *tensor);
  lolrt_device device() const { return device_; }
  // Fails unless the caller's descriptor is the one this build knows.
  void descriptor(const void *descriptor, uint32_t given_bytes, uint32_t known_bytes) const;

 private:
  const char *operation_;
  Devices devices_;
  lolrt_device device_{LOLRT_DEVICE_CPU, 0};
};

}  // namespace lolrt
