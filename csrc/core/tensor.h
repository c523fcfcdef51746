// Checked access to the tensor views of a descriptor.
#pragma once

#include "lolrt/lolrt.h"

#include <initializer_list>

namespace lolrt {

enum class DType { float32, bfloat16, int32, int64, uint64 };

int64_t element_bytes(DType dtype);

// float32 or bfloat16; fails for any other type, naming `what`.
DType floating_type(const char *what, lolrt_dtype dtype);

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

// A view that has passed its checks; strides in elements.
class View {
 public:
  static constexpr int max_dims = 6;

  int64_t size(int dim) const { return size_[dim]; }
  int64_t stride(int dim) const { return stride_[dim]; }
  int64_t elements() const;
  template <class T>
  T *data() const {
    return static_cast<T *>(data_);
  }

 private:
  friend class Checker;
  void *data_ = nullptr;
  int64_t size_[max_dims] = {};
  int64_t stride_[max_dims] = {};
};

// Checks the views of one operation; every message starts with its name.
class Checker {
 public:
  explicit Checker(const char *operation) : operation_(operation) {}

  // Fails unless `tensor` is on the CPU and has the dtype, dimensions and layout asked for.
  View operator()(const char *name, const lolrt_tensor *tensor, DType dtype, std::initializer_list<Dim> dims,
                  Layout layout = Layout::contiguous) const;
  // The same for a tensor that is written: its elements must not share memory.
  View output(const char *name, const lolrt_tensor *tensor, DType dtype, std::initializer_list<Dim> dims,
              Layout layout = Layout::contiguous) const;
  // The tensor's element type, float32 or bfloat16.
  DType type(const char *name, const lolrt_tensor *tensor) const;
  // Fails unless the caller's descriptor is the one this build knows.
  void descriptor(const void *descriptor, uint32_t given_bytes, uint32_t known_bytes) const;

 private:
  const char *operation_;
};

}  // namespace lolrt
