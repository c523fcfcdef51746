// Dividing a workspace.
#pragma once

#include <cstdint>

namespace lolrt {
namespace {

// Hands out 64-byte aligned pieces of a buffer and counts their bytes; with a NULL buffer it only counts.
class Arena {
 public:
  explicit Arena(void *base) : base_(static_cast<char *>(base)) {}
  template <class T>
  T *take(int64_t count) {
    T *piece = base_ ? reinterpret_cast<T *>(base_ + bytes_) : nullptr;
    bytes_ += (static_cast<uint64_t>(count) * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
  uint64_t bytes() const { return bytes_; }

 private:
  char *base_;
  uint64_t bytes_ = 0;
};

}  // namespace
}  // namespace lolrt
