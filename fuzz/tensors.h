// What the fuzzers of the C ABI, of the binding and of the bridges make from bytes: numbers, and tensors with real memory.
//
// Sizes, strides, types and numbers are mostly right. A tensor has memory of exactly the span that its view claims; one whose
// span is larger than that can be had has a NULL pointer, and one that no address space holds must be refused.
#pragma once

#include "lolrt/lolrt.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <list>
#include <memory>
#include <random>
#include <vector>

namespace fuzz {

class Bytes {
 public:
  Bytes(const uint8_t *data, size_t size) : at_(data), end_(data + size) {}
  uint8_t next() { return at_ < end_ ? *at_++ : 0; }
  bool rarely() { return next() >= 248; }
  int64_t below(int64_t limit) { return next() % limit; }
  int64_t number() {
    static constexpr int64_t extremes[] = {0,
                                           1,
                                           -1,
                                           2,
                                           3,
                                           7,
                                           16,
                                           33,
                                           64,
                                           255,
                                           4096,
                                           INT32_MAX,
                                           INT64_MAX,
                                           INT64_MIN,
                                           INT64_MAX / 2,
                                           INT64_MAX - 1,
                                           int64_t{1} << 24,
                                           int64_t{1} << 40,
                                           int64_t{1} << 61,
                                           -(int64_t{1} << 61)};
    const uint8_t choice = next();
    return choice < std::size(extremes) ? extremes[choice] : choice % 40;
  }
  int64_t or_number(int64_t right) { return rarely() ? number() : right; }

 private:
  const uint8_t *at_, *end_;
};

constexpr lolrt_dtype kFloat32{LOLRT_CODE_FLOAT, 32, 1}, kBfloat16{LOLRT_CODE_BFLOAT, 16, 1}, kInt32{LOLRT_CODE_INT, 32, 1},
    kInt64{LOLRT_CODE_INT, 64, 1}, kInt8{LOLRT_CODE_INT, 8, 1}, kUint8{LOLRT_CODE_UINT, 8, 1}, kUint64{LOLRT_CODE_UINT, 64, 1};
constexpr int kDims = 64;  // that a shape has room for
constexpr size_t kMostBytes = 1 << 18;

struct Owned {
  lolrt_tensor view{};
  int64_t shape[kDims], strides[kDims];
  std::unique_ptr<char[]> memory;
  bool impossible = false;  // too large for any address space
};

// The tensors of a call; they live as long as the call.
class Tensors {
 public:
  // strided: they may have gaps.
  explicit Tensors(Bytes &bytes, bool strided = true) : bytes_(bytes), strided_(strided) {}

  // NULL now and then.
  const lolrt_tensor *operator()(lolrt_dtype dtype, std::initializer_list<int64_t> right) {
    if (bytes_.rarely()) return nullptr;
    Owned &made = all_.emplace_back();
    std::fill(made.shape, made.shape + kDims, 1);
    int ndim = 0;
    for (int64_t size : right) made.shape[ndim++] = bytes_.or_number(size);
    if (bytes_.rarely()) ndim = static_cast<int>(bytes_.below(kDims + 1));
    int64_t packed = 1;
    for (int dim = kDims - 1; dim >= 0; --dim) {
      const bool here = dim < ndim;
      made.strides[dim] = here ? bytes_.or_number(packed) : 1;
      if (here && __builtin_mul_overflow(packed, std::max<int64_t>(made.shape[dim], 1), &packed)) packed = 1;
      if (here && bytes_.rarely()) packed = std::min(packed, INT64_MAX - 16) + 16;  // a gap
    }
    const bool strided = bytes_.next() % 2 && strided_;
    if (bytes_.rarely()) dtype = {bytes_.next(), bytes_.next(), static_cast<uint16_t>(bytes_.next() % 3)};
    made.view = {nullptr, {LOLRT_DEVICE_CPU, 0}, ndim, dtype, made.shape, strided ? made.strides : nullptr, 0};
    if (bytes_.rarely()) made.view.device = {static_cast<int32_t>(bytes_.below(4)), static_cast<int32_t>(bytes_.below(2))};
    if (bytes_.rarely()) made.view.shape = nullptr;
    if (made.view.shape) give_memory(made);
    if (bytes_.rarely()) made.view.ndim = static_cast<int32_t>(std::clamp<int64_t>(bytes_.number(), INT32_MIN, INT32_MAX));
    if (made.view.ndim > kDims && made.view.ndim < INT32_MAX) made.view.ndim = INT32_MAX;
    if (made.view.ndim > ndim) made.view.data = nullptr;  // with other strides than the memory was allocated for
    return &made.view;
  }

  // Fails if a call has accepted a tensor that cannot exist.
  void check_taken() const {
    if (std::any_of(all_.begin(), all_.end(), [](const Owned &each) { return each.impossible; })) {
      std::fprintf(stderr, "a tensor that no address space holds was taken\n");
      std::abort();
    }
  }

  void check(lolrt_status status, bool all_are_used = true) const {
    if (status == LOLRT_OK && all_are_used) check_taken();
    if (status == LOLRT_INTERNAL || (status != LOLRT_OK && std::strlen(lolrt_last_error()) == 0)) {
      std::fprintf(stderr, "status %d without a reason: %s\n", status, lolrt_last_error());
      std::abort();
    }
  }

 private:
  void give_memory(Owned &made) {
    using Wide = __int128;
    const Wide bytes = std::max<int64_t>((made.view.dtype.bits * made.view.dtype.lanes + 7) / 8, 1);
    Wide before = 0, after = 0, packed = 1;
    for (int dim = made.view.ndim - 1; dim >= 0; --dim) {
      const Wide stride = made.view.strides ? made.view.strides[dim] : packed;
      const Wide reach = std::max<Wide>(Wide{made.shape[dim]} - 1, 0) * stride;
      Wide &side = reach < 0 ? before : after;
      side = std::min(side + (reach < 0 ? -reach : reach), Wide{1} << 100);
      packed = std::min<Wide>(packed * std::max<int64_t>(made.shape[dim], 1), Wide{1} << 63);
    }
    const Wide whole = (before + after + 1) * bytes;
    if (whole > kMostBytes) {
      made.impossible = whole > INT64_MAX;
      made.view.data = made.impossible ? reinterpret_cast<void *>(64) : nullptr;
      return;
    }
    const uint64_t offset = bytes_.rarely() ? static_cast<uint64_t>(bytes_.below(9)) : 0;
    made.memory.reset(new char[static_cast<size_t>(whole) + offset]);
    std::memset(made.memory.get(), 0, static_cast<size_t>(whole) + offset);
    for (Wide i = 0; i < std::min<Wide>(whole / 4, 4); ++i) {  // the numbers of a page table, for example
      const auto entry = static_cast<int32_t>(bytes_.or_number(static_cast<int64_t>(i)));
      std::memcpy(made.memory.get() + offset + 4 * i, &entry, sizeof entry);
    }
    made.view.byte_offset = offset + static_cast<uint64_t>(before * bytes);
    made.view.data = made.memory.get();
  }

  Bytes &bytes_;
  bool strided_;
  std::list<Owned> all_;
};

}  // namespace fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#if defined(STANDALONE)
// A program without libFuzzer. Its arguments are the number of inputs, and a seed that determines all of them. `calls` counts.
extern long calls;

int main(int argc, char **argv) {
  const long inputs = argc > 1 ? std::atol(argv[1]) : 100000;
  std::mt19937_64 random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
  std::vector<uint64_t> words(50);
  for (long input = 0; input < inputs; ++input) {
    for (uint64_t &word : words) word = random();
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t *>(words.data()), 8 * words.size());
  }
  std::printf("%ld calls\n", calls);
}
#endif
