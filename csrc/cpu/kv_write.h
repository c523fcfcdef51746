// kv_write for one instruction set.
//
//   x' = round_T(round_T(x * rsqrt(mean(x^2) + eps)) * weight), mean over all heads of a token; pairs of x' from
//   rotation_first_channel on are rotated and rounded to T once. Without a weight x' = x.
//
// Tensors: q, k, v, q_out T [frames, tokens, heads, dim]; weights T [heads, dim]; rotation float32 [tokens, pairs, 2]; pages as
// in core/page_layout.h. A task is a block of 16 tokens of one frame, which is what a block of K in a page holds. K of a head is
// projected into a stage of 16 rows and transposed into the page in registers, words of 32 bits at a time: a float, or the pair
// of bfloat16 that lie side by side in a page. Queries and V go row by row, as they lie in memory. Padding of a page is not
// written. Large calls assemble a block of a head's K and V in L1 and write it past the caches, line by line.
#pragma once

#include "core/ops.h"
#include "core/threads.h"
#include "cpu/bf16.h"
#include "cpu/tuning.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace lolrt {
namespace {

template <class Isa, class T>
class KvWriteKernel {
  using Vec = typename Isa::Vec;
  static constexpr int W = Isa::width;
  static constexpr int kBlock = PageLayout::block_tokens;
  static constexpr int64_t kChannels = PageLayout::block_channels;
  static constexpr bool is_bf16 = std::is_same<T, Bf16>::value;
  static constexpr int depth = is_bf16 ? 2 : 1;  // channels of K, and tokens of V, that lie side by side in a page

 public:
  static void run(const KvWrite &op) {
    const KvWriteKernel kernel(op);
    const int64_t blocks = (op.tokens + kBlock - 1) / kBlock;
    parallel_for(op.frames * blocks, lolrt_threads(), [&](int64_t task, int32_t) {
      const int64_t first = task % blocks * kBlock;
      const int64_t left = op.tokens - first;
      kernel.write({task / blocks, first, static_cast<int>(left < kBlock ? left : kBlock)});
      if (kernel.streams_) Isa::fence();
    });
  }

 private:
  struct Block {
    int64_t frame, first;  // first token
    int tokens;
  };
  using Stage = float[kBlock][PageLayout::max_dim / depth];  // 16 rows of K, as words

  static constexpr int64_t kLine = PageLayout::part_bytes;
  static constexpr int64_t kBlockBytes = kBlock * PageLayout::max_dim * sizeof(T);

  explicit KvWriteKernel(const KvWrite &op)
      : op_(op),
        layout_(LOLRT_DEVICE_CPU, op.dtype, op.tokens, op.heads, op.dim),
        streams_(op.frames * layout_.elements * static_cast<int64_t>(sizeof(T)) > kStreamedBytes &&
                 reinterpret_cast<uintptr_t>(op.pages) % kLine == 0 && op.page_stride * sizeof(T) % kLine == 0) {}

  void write(const Block &block) const {
    if (op_.q.data) write_queries(block);
    if (op_.k.data) {
      T *page = static_cast<T *>(op_.pages) + op_.page_table[block.frame] * op_.page_stride;
      write_heads(block, page, page + layout_.values);
    }
  }

  void write_queries(const Block &block) const {
    float scale[kBlock];
    for (int t = 0; t < block.tokens; ++t) scale[t] = inverse_rms(op_.q, op_.q_weight, block, t);
    for (int t = 0; t < block.tokens; ++t) {
      for (int64_t head = 0; head < op_.heads; ++head) {
        T *to = op_.q_out.template row<T>(block.frame, block.first + t, head);
        project(op_.q, op_.q_weight, block, t, head, scale[t], to);
      }
    }
  }

  void write_heads(const Block &block, T *keys, T *values) const {
    float scale[kBlock];
    for (int t = 0; t < block.tokens; ++t) scale[t] = inverse_rms(op_.k, op_.k_weight, block, t);
    const bool streams = streams_ && block.tokens == kBlock && op_.dim % kChannels == 0;  // whole lines
    alignas(64) Stage stage;
    alignas(64) char assembled[kBlockBytes];
    for (int64_t head = 0; head < op_.heads; ++head) {
      T *key = keys + head * layout_.key_head + block.first * op_.dim;
      T *value = values + head * layout_.value_head + block.first * kChannels;
      if (!streams) prefetch_block(key, value, block);
      for (int t = 0; t < block.tokens; ++t) {
        project(op_.k, op_.k_weight, block, t, head, scale[t], reinterpret_cast<T *>(stage[t]));
      }
      if (streams) {
        auto *lines = reinterpret_cast<T *>(assembled);
        store_keys(stage, block, lines);
        stream(lines, key, kBlock * op_.dim);
        write_values(block, head, lines, kBlock * kChannels);
        for (int64_t c = 0; c < op_.dim; c += kChannels, value += layout_.value_block) {
          stream(lines + c * kBlock, value, kBlock * kChannels);
        }
      } else {
        store_keys(stage, block, key);
        write_values(block, head, value, layout_.value_block);
      }
    }
  }

  static void stream(const T *from, T *to, int64_t count) {
    constexpr int64_t line = kLine / sizeof(T);
    for (int64_t i = 0; i < count; i += line) Isa::stream_line(from + i, to + i);
  }

  void prefetch_block(const T *key, const T *value, const Block &block) const {
    prefetch(key, block.tokens * op_.dim);
    for (int64_t c = 0; c < op_.dim; c += kChannels, value += layout_.value_block) prefetch(value, block.tokens * kChannels);
  }

  // Fetches lines to be written, while there is something else to do.
  static void prefetch(const T *to, int64_t count) {
    const auto *bytes = reinterpret_cast<const char *>(to);
    for (int64_t i = 0; i < count * static_cast<int64_t>(sizeof(T)); i += 64) __builtin_prefetch(bytes + i, 1);
  }

  // 1 / rms of a token over all its heads; what it is does not matter without a weight.
  float inverse_rms(const HeadRows &x, const void *weight, const Block &block, int t) const {
    if (weight == nullptr) return 1.0f;
    Vec squares = Isa::zero();
    for (int64_t head = 0; head < op_.heads; ++head) {
      const T *row = x.template row<const T>(block.frame, block.first + t, head);
      int64_t c = 0;
      for (; c + W <= op_.dim; c += W) {
        const Vec value = Isa::load(row + c);
        squares = Isa::multiply_add(value, value, squares);
      }
      if (c < op_.dim) {
        const Vec value = Isa::load_n(row + c, static_cast<int>(op_.dim - c));
        squares = Isa::multiply_add(value, value, squares);
      }
    }
    const float mean = Isa::reduce_add(squares) / static_cast<float>(op_.heads * op_.dim);
    return 1.0f / std::sqrt(mean + op_.eps);
  }

  // One head of one token: normalised, weighted, rotated. `to` may be the row itself.
  void project(const HeadRows &x, const void *weight, const Block &block, int t, int64_t head, float scale, T *to) const {
    const int64_t token = block.first + t;
    const T *from = x.template row<const T>(block.frame, token, head);
    const T *by = weight ? static_cast<const T *>(weight) + head * op_.dim : nullptr;
    const float *angles = op_.rotation ? op_.rotation + token * op_.pairs * 2 : nullptr;
    const int64_t first = angles ? op_.rotation_first_channel : op_.dim, end = angles ? first + 2 * op_.pairs : op_.dim;
    project_channels(from, by, scale, nullptr, to, 0, first);
    project_channels(from, by, scale, angles, to, first, end);
    project_channels(from, by, scale, nullptr, to, end, op_.dim);
  }

  // Channels [first, end) of a row; `weight` and `angles` may be NULL, and angles[0] belongs to channel `first`.
  static void project_channels(const T *from, const T *weight, float scale, const float *angles, T *to, int64_t first,
                               int64_t end) {
    if (weight == nullptr && angles == nullptr) {
      if (to != from) std::memcpy(to + first, from + first, (end - first) * sizeof(T));
      return;
    }
    const Vec by_scale = Isa::set(scale);
    const auto projected = [&](int64_t c, const auto &load) {
      Vec value = load(from + c);
      if (weight) value = Isa::mul(round(Isa::mul(value, by_scale)), load(weight + c));
      if (angles) value = Isa::rotate(weight ? round(value) : value, load(angles + (c - first)));
      return value;
    };
    int64_t c = first;
    for (; c + W <= end; c += W) Isa::store(to + c, projected(c, [](const auto *at) { return Isa::load(at); }));
    if (c < end) {
      const int lanes = static_cast<int>(end - c);
      Isa::store_n(to + c, projected(c, [lanes](const auto *at) { return Isa::load_n(at, lanes); }), lanes);
    }
  }

  static Vec round(Vec value) {
    if constexpr (is_bf16) {
      return Isa::round_bf16(value);
    } else {
      return value;
    }
  }

  // [16 tokens][words] to [words][16 tokens].
  void store_keys(const Stage &stage, const Block &block, T *keys) const {
    auto *to = reinterpret_cast<float *>(keys);
    const int64_t words = op_.dim / depth;
    for (int first = 0; first < block.tokens; first += W) {
      const int lanes = block.tokens - first < W ? block.tokens - first : W;
      for (int64_t word = 0; word < words; word += W) {
        Vec tile[W];
        for (int t = 0; t < W; ++t) tile[t] = Isa::load(stage[first + t] + word);
        Isa::transpose(tile);
        const int rows = static_cast<int>(words - word < W ? words - word : W);
        float *column = to + word * kBlock + first;
        for (int row = 0; row < rows; ++row, column += kBlock) {
          if (lanes == W) {
            Isa::store(column, tile[row]);
          } else {
            Isa::store_n(column, tile[row], lanes);
          }
        }
      }
    }
  }

  // [tokens][dim] of a head to [dim / 16][tokens / depth][16][depth], what is adjacent there one after the other; blocks of 16
  // channels are value_block elements apart.
  void write_values(const Block &block, int64_t head, T *to, int64_t value_block) const {
    for (int64_t c = 0; c < op_.dim; c += kChannels, to += value_block) {
      if (c + kChannels <= op_.dim) {
        write_channels(block, head, c, kChannels, to);
      } else {
        write_channels(block, head, c, op_.dim - c, to);
      }
    }
  }

  // `count` channels from `first` on.
  [[gnu::always_inline]] void write_channels(const Block &block, int64_t head, int64_t first, int64_t count, T *to) const {
    for (int t = 0; t < block.tokens; t += depth, to += depth * kChannels) {
      const T *row = op_.v.template row<const T>(block.frame, block.first + t, head) + first;
      if (depth == 1) {
        std::memcpy(to, row, count * sizeof(T));
      } else if (t + 1 < block.tokens) {
        Isa::interleave(reinterpret_cast<const uint16_t *>(row), reinterpret_cast<const uint16_t *>(row + op_.v.token),
                        reinterpret_cast<uint16_t *>(to), count);
      } else {
        for (int64_t c = 0; c < count; ++c) to[depth * c] = row[c];
      }
    }
  }

  const KvWrite &op_;
  const PageLayout layout_;
  const bool streams_;
};

}  // namespace
}  // namespace lolrt
