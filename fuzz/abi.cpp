// Fuzzes the C ABI: whatever a descriptor says of tensors whose memory is there, a call computes or refuses, and touches nothing
// else.
//
// Bytes choose an op, and sizes, strides, types and numbers that are mostly right. A tensor has memory of exactly the span that
// its view claims; one whose span is larger than that can be had has a NULL pointer, and one that no address space holds must be
// refused.
//
//     clang++ -std=c++17 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Icsrc/include -Icsrc
//       -DLOLRT_VERSION='"0"' fuzz/abi.cpp csrc/core/*.cpp csrc/cpu/scalar.cpp -o build/fuzz_abi && build/fuzz_abi -runs=10000000
//
// Without libFuzzer -DSTANDALONE, and no `fuzzer`, makes a program that draws the bytes itself: build/fuzz_abi CALLS SEED.
#include "lolrt/lolrt.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <list>
#include <memory>
#include <vector>

namespace {

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
    kInt64{LOLRT_CODE_INT, 64, 1}, kUint64{LOLRT_CODE_UINT, 64, 1};
constexpr int kDims = 64;  // that a shape has room for
constexpr size_t kMostBytes = 1 << 18;

struct Owned {
  lolrt_tensor view{};
  int64_t shape[kDims], strides[kDims];
  std::unique_ptr<char[]> memory;
  bool impossible = false;  // no address space holds it
};

// The tensors of a call; they live as long as it.
class Tensors {
 public:
  explicit Tensors(Bytes &bytes) : bytes_(bytes) {}

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
    if (bytes_.rarely()) dtype = {bytes_.next(), bytes_.next(), static_cast<uint16_t>(bytes_.next() % 3)};
    made.view = {nullptr, {LOLRT_DEVICE_CPU, 0}, ndim, dtype, made.shape, bytes_.next() % 2 ? made.strides : nullptr, 0};
    if (bytes_.rarely()) made.view.device = {static_cast<int32_t>(bytes_.below(4)), static_cast<int32_t>(bytes_.below(2))};
    if (bytes_.rarely()) made.view.shape = nullptr;
    if (made.view.shape) give_memory(made);
    if (bytes_.rarely()) made.view.ndim = static_cast<int32_t>(std::clamp<int64_t>(bytes_.number(), INT32_MIN, INT32_MAX));
    if (made.view.ndim > kDims && made.view.ndim < INT32_MAX) made.view.ndim = INT32_MAX;
    if (made.view.ndim > ndim) made.view.data = nullptr;  // of other strides than memory was given for
    return &made.view;
  }

  // Fails where a call has taken a tensor that there cannot be.
  void check(lolrt_status status, bool all_are_used = true) const {
    const bool impossible =
        all_are_used && std::any_of(all_.begin(), all_.end(), [](const Owned &each) { return each.impossible; });
    if (status == LOLRT_OK && impossible) {
      std::fprintf(stderr, "a tensor that no address space holds was taken\n");
      std::abort();
    }
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
    for (Wide i = 0; i < std::min<Wide>(whole / 4, 4); ++i) {  // numbers of a page table, say
      const auto entry = static_cast<int32_t>(bytes_.or_number(static_cast<int64_t>(i)));
      std::memcpy(made.memory.get() + offset + 4 * i, &entry, sizeof entry);
    }
    made.view.byte_offset = offset + static_cast<uint64_t>(before * bytes);
    made.view.data = made.memory.get();
  }

  Bytes &bytes_;
  std::list<Owned> all_;
};

void fuzz_kv_write(Bytes &bytes, Tensors &tensor, lolrt_dtype dtype) {
  const int64_t frames = 1 + bytes.below(3), tokens = 1 + bytes.below(20), heads = 1 + bytes.below(2),
                dim = 2 * (1 + bytes.below(20));
  int64_t elements = 1;
  lolrt_page_elements(LOLRT_DEVICE_CPU, dtype, tokens, heads, dim, &elements);
  const auto rows = {frames, tokens, heads, dim};
  const lolrt_kv_write_desc desc{bytes.rarely() ? bytes.next() : static_cast<uint32_t>(sizeof desc),
                                 1e-6f,
                                 tensor(dtype, rows),
                                 tensor(dtype, rows),
                                 tensor(dtype, rows),
                                 tensor(dtype, {heads, dim}),
                                 tensor(dtype, {heads, dim}),
                                 tensor(kFloat32, {tokens, 1, 2}),
                                 bytes.or_number(0),
                                 tensor(dtype, rows),
                                 tensor(dtype, {frames + 1, elements}),
                                 tensor(kInt32, {frames}),
                                 nullptr};
  tensor.check(lolrt_kv_write(&desc), (desc.q || desc.q_out) && (desc.k || desc.v));
}

void fuzz_frame_attention(Bytes &bytes, Tensors &tensor, lolrt_dtype dtype) {
  const int64_t frames = 1 + bytes.below(3), tokens = 1 + bytes.below(20), heads = 1 + bytes.below(2),
                dim = 2 * (1 + bytes.below(20));
  const int64_t page_tokens = 1 + bytes.below(20), pages = 1 + bytes.below(3);
  int64_t elements = 1;
  lolrt_page_elements(LOLRT_DEVICE_CPU, dtype, page_tokens, heads, dim, &elements);
  lolrt_frame_attention_desc desc{bytes.rarely() ? bytes.next() : static_cast<uint32_t>(sizeof desc),
                                  bytes.rarely() ? static_cast<float>(bytes.number()) : 0.0f,
                                  tensor(dtype, {frames, tokens, heads, dim}),
                                  tensor(dtype, {3, elements}),
                                  bytes.next() % 2 ? tensor(kInt32, {pages}) : tensor(kInt32, {1, pages}),
                                  bytes.or_number(page_tokens),
                                  bytes.next() % 2 ? tensor(kFloat32, {pages, frames, heads, 1, 2}) : nullptr,
                                  bytes.next() % 2 ? tensor(kFloat32, {pages, heads}) : nullptr,
                                  tensor(dtype, {frames, tokens, heads, dim}),
                                  bytes.next() % 2 ? tensor(kFloat32, {pages, frames, heads}) : nullptr,
                                  nullptr,
                                  0,
                                  nullptr};
  if (lolrt_frame_attention_workspace(&desc, &desc.workspace_bytes) == LOLRT_OK && desc.workspace_bytes < (1 << 26)) {
    std::vector<char> room(desc.workspace_bytes + 63);
    desc.workspace = room.data() + (64 - reinterpret_cast<uintptr_t>(room.data()) % 64) % 64;
    if (bytes.rarely()) desc.workspace_bytes /= 2;
    tensor.check(lolrt_frame_attention(&desc));
  }
}

void fuzz_modulated_norm(Bytes &bytes, Tensors &tensor, lolrt_dtype dtype) {
  const int64_t frames = 1 + bytes.below(3), tokens = 1 + bytes.below(9), channels = 1 + bytes.below(70);
  const auto rows = {frames, tokens, channels};
  const lolrt_modulated_norm_desc desc{sizeof desc,
                                       1e-6f,
                                       tensor(dtype, rows),
                                       tensor(dtype, rows),
                                       tensor(kFloat32, {frames, channels}),
                                       tensor(kFloat32, {1, channels}),
                                       tensor(kFloat32, {frames, channels}),
                                       tensor(dtype, rows),
                                       nullptr};
  tensor.check(lolrt_modulated_norm(&desc));
}

void fuzz_gelu(Bytes &bytes, Tensors &tensor, lolrt_dtype dtype) {
  const lolrt_gelu_desc desc{sizeof desc, tensor(dtype, {1 + bytes.below(3), 1 + bytes.below(9), 1 + bytes.below(70)}), nullptr};
  tensor.check(lolrt_gelu(&desc));
}

void fuzz_sampler_step(Bytes &bytes, Tensors &tensor, lolrt_dtype) {
  const auto size = {1 + bytes.below(200)};
  const lolrt_sampler_step_desc desc{
      sizeof desc, 0.9, 0.5, tensor(kFloat32, size), tensor(kFloat32, size), tensor(kFloat32, size), tensor(kFloat32, size),
      nullptr};
  tensor.check(lolrt_sampler_step(&desc));
}

void fuzz_channel_norm(Bytes &bytes, Tensors &tensor, lolrt_dtype dtype) {
  const int64_t frames = 1 + bytes.below(2), rows = 1 + bytes.below(4), columns = 1 + bytes.below(4),
                channels = 1 + bytes.below(40);
  const int64_t margin = bytes.below(3);
  const lolrt_channel_norm_desc desc{sizeof desc, bytes.next() % 2, tensor(dtype, {frames, rows, columns, channels}),
                                     tensor(kFloat32, {channels}),
                                     tensor(kFloat32, {frames, rows + 2 * margin, columns + 2 * margin, channels})};
  tensor.check(lolrt_channel_norm(&desc));
}

void fuzz_conv3d(Bytes &bytes, Tensors &tensor, lolrt_dtype) {
  const int64_t taps = 1 + bytes.below(3), side = 1 + bytes.below(3), in = 1 + bytes.below(20), out = 1 + bytes.below(40);
  const int64_t frames = 1 + bytes.below(2), rows = side + bytes.below(3), columns = side + bytes.below(3),
                blocks = (out + 15) / 16;
  const auto result = {frames, rows - side + 1, columns - side + 1, out};
  const lolrt_conv3d_desc desc{sizeof desc,
                               taps > 1 ? tensor(kFloat32, {taps - 1, rows, columns, in}) : nullptr,
                               tensor(kFloat32, {frames, rows, columns, in}),
                               tensor(kFloat32, {blocks, taps, side, side, in, 16}),
                               tensor(kFloat32, {blocks, 16}),
                               tensor(kFloat32, result),
                               tensor(kFloat32, result)};
  tensor.check(lolrt_conv3d(&desc));
}

void fuzz_tables(Bytes &bytes, Tensors &tensor, lolrt_dtype) {
  const int64_t pages = 1 + bytes.below(4), frames = 1 + bytes.below(4), heads = 1 + bytes.below(3), pairs = 1 + bytes.below(9);
  tensor.check(lolrt_rotation_table(tensor(kUint64, {heads, pairs}), tensor(kInt64, {pages, frames}),
                                    tensor(kFloat32, {pages, frames, heads, pairs, 2})));
}

void fuzz_normal(Bytes &bytes, Tensors &tensor, lolrt_dtype) {
  tensor.check(lolrt_normal(bytes.next(), bytes.number(), static_cast<int32_t>(bytes.below(9)),
                            tensor(kFloat32, {1 + bytes.below(9), 1 + bytes.below(9)})));
}

void fuzz_windows(Bytes &bytes, Tensors &tensor, lolrt_dtype) {
  lolrt_pool *pool = nullptr;
  lolrt_window *window = nullptr;
  const int64_t pages = bytes.number();
  if (lolrt_pool_create(pages > 4096 ? 4096 : pages, &pool) != LOLRT_OK) return;
  if (lolrt_window_create(pool, bytes.number(), bytes.number(), &window) == LOLRT_OK) {
    int64_t frame = bytes.number(), frames[8];
    int32_t page = -1;  // that is ours to release, and not the window's
    for (int call = 0; call < 12; ++call) {
      const int64_t count = bytes.or_number(1 + bytes.below(3));
      const uint8_t choice = bytes.next() % 8;
      const int64_t first = bytes.rarely() ? bytes.number() : frame;
      if (choice < 5 && lolrt_window_advance(window, first, count) == LOLRT_OK) frame = first + count;
      if (choice == 5 && page < 0) tensor.check(lolrt_pool_acquire(pool, &page));
      if (choice == 6 && lolrt_pool_release(pool, page) == LOLRT_OK) page = -1;
      if (choice == 7) {
        for (int64_t &each : frames) each = bytes.number();
        tensor.check(lolrt_window_restore(window, frames, bytes.below(9)));
      }
    }
    std::vector<int32_t> held(static_cast<size_t>(lolrt_window_size(window)));
    std::vector<int64_t> named(held.size());
    if (lolrt_window_read(window, held.data(), named.data(), lolrt_window_size(window)) != LOLRT_OK) std::abort();
    std::sort(held.begin(), held.end());
    if (std::adjacent_find(held.begin(), held.end()) != held.end()) std::abort();  // two frames in one page
    lolrt_window_destroy(window);
  }
  lolrt_pool_destroy(pool);
  int64_t elements = 0;
  const lolrt_dtype dtype{bytes.next(), bytes.next(), 1};
  tensor.check(lolrt_page_elements(static_cast<int32_t>(bytes.below(4)), dtype, bytes.number(), bytes.number(), bytes.number(),
                                   &elements));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static constexpr void (*targets[])(Bytes &, Tensors &, lolrt_dtype) = {
      fuzz_kv_write,     fuzz_frame_attention, fuzz_modulated_norm, fuzz_gelu,   fuzz_sampler_step,
      fuzz_channel_norm, fuzz_conv3d,          fuzz_tables,         fuzz_normal, fuzz_windows};
  static const bool one_thread = lolrt_set_threads(1) == LOLRT_OK;
  if (!one_thread) return 1;
  Bytes bytes(data, size);
  const uint8_t choice = bytes.next();
  Tensors tensors(bytes);
  targets[choice % std::size(targets)](bytes, tensors, choice & 128 ? kBfloat16 : kFloat32);
  return 0;
}

#if defined(STANDALONE)
// Arguments: the number of calls, and a seed. Says which input it was if it does not come back: all follow from the seed.
#  include <random>

int main(int argc, char **argv) {
  const long calls = argc > 1 ? std::atol(argv[1]) : 100000;
  std::mt19937_64 random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
  std::vector<uint8_t> input(400);
  for (long call = 0; call < calls; ++call) {
    for (uint8_t &byte : input) byte = static_cast<uint8_t>(random());
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::printf("%ld calls\n", calls);
}
#endif
