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
#include "cpu/words.h"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace lolrt {
namespace {

template <class Isa, class T>
class KvWriteKernel {
 public:
  static void run(const KvWrite &op) {
    const KvWriteKernel kernel(op);
    kernel.for_blocks([&](const Block &block, const Angles &angles) {
      if (op.q.data) kernel.write_queries(block, angles);
      if (op.k.data) kernel.write_heads(block, angles);
      if (kernel.streams_) Isa::fence();
    });
  }

 protected:
  using Vec = typename Isa::Vec;
  using Row = Words<Isa, T>;
  static constexpr int W = Isa::width;
  static constexpr int kBlock = PageLayout::block_tokens;
  static constexpr int64_t kChannels = PageLayout::block_channels;
  static constexpr int depth = Row::depth;  // channels of K, and tokens of V, that lie side by side in a page
  static constexpr int kChunk = W * depth;  // channels that are projected together
  static constexpr int64_t kMaxChannels = PageLayout::max_dim;
  static_assert(kMaxChannels % kChunk == 0, "the last chunk of a row has room");

  struct Block {
    int64_t frame, first;  // first token
    int tokens;
  };
  using Stage = float[kBlock][kMaxChannels / depth];  // 16 rows of K, as words
  struct alignas(64) Angles {                         // of the block's tokens and of each channel, as Row::turned reads them
    float values[kBlock][kMaxChannels];
    float *operator[](int t) { return values[t]; }
    const float *operator[](int t) const { return values[t]; }
  };

  static constexpr int64_t kLine = PageLayout::part_bytes;
  static constexpr int64_t kBlockBytes = kBlock * kMaxChannels * sizeof(T);

  explicit KvWriteKernel(const KvWrite &op)
      : op_(op),
        layout_(LOLRT_DEVICE_CPU, op.k.data ? op.page_dtype : op.dtype, op.tokens, op.heads, op.dim),
        turned_from_(op.rotation_first_channel),
        turned_to_(op.rotation_first_channel + 2 * op.pairs),
        streams_(op.frames * layout_.elements * static_cast<int64_t>(sizeof(T)) > kStreamedBytes &&
                 reinterpret_cast<uintptr_t>(op.pages) % kLine == 0 && op.page_stride * sizeof(T) % kLine == 0) {}

  // body(block, its angles), a task each.
  template <class Body>
  void for_blocks(const Body &body) const {
    const int64_t blocks = (op_.tokens + kBlock - 1) / kBlock;
    parallel_for(op_.frames * blocks, lolrt_threads(), [&](int64_t task, int32_t) {
      const int64_t first = task % blocks * kBlock, left = op_.tokens - first;
      const Block block{task / blocks, first, static_cast<int>(left < kBlock ? left : kBlock)};
      Angles angles;
      if (op_.rotation) take_angles(block, angles);
      body(block, angles);
    });
  }

  // The angles of the chunks that any are for; channels of theirs that are not turned get the identity.
  void take_angles(const Block &block, Angles &angles) const {
    alignas(64) float row[kMaxChannels];
    const int64_t first = turned_from_ / kChunk * kChunk;
    for (int64_t c = first; c < kMaxChannels; ++c) row[c] = c % 2 ? 0.0f : 1.0f;
    for (int t = 0; t < block.tokens; ++t) {
      const float *cos_sin = op_.rotation + (block.first + t) * op_.pairs * 2;
      for (int64_t c = turned_from_; c < turned_to_; ++c) row[c] = cos_sin[c - turned_from_];
      for (int64_t c = first; c < turned_to_; c += kChunk) Row::store_angles(row + c, angles[t] + c);
    }
  }

  void write_queries(const Block &block, const Angles &angles) const {
    float scale[kBlock];
    for (int t = 0; t < block.tokens; ++t) scale[t] = inverse_rms(op_.q, op_.q_weight, block, t);
    for (int64_t head = 0; head < op_.heads; ++head) {
      project(op_.q, op_.q_weight, block, head, scale, angles,
              [&](int t) { return op_.q_out.template row<T>(block.frame, block.first + t, head); });
    }
  }

  void write_heads(const Block &block, const Angles &angles) const {
    T *keys = static_cast<T *>(op_.pages) + op_.page_table[block.frame] * op_.page_stride, *values = keys + layout_.values;
    float scale[kBlock];
    for (int t = 0; t < block.tokens; ++t) scale[t] = inverse_rms(op_.k, op_.k_weight, block, t);
    const bool streams = streams_ && block.tokens == kBlock && op_.dim % kChannels == 0;  // whole lines
    alignas(64) Stage stage;
    alignas(64) char assembled[kBlockBytes];
    for (int64_t head = 0; head < op_.heads; ++head) {
      T *key = keys + head * layout_.key_head + block.first * op_.dim;
      T *value = values + head * layout_.value_head + block.first * kChannels;
      if (!streams) prefetch_block(key, value, block);
      project(op_.k, op_.k_weight, block, head, scale, angles, [&](int t) { return reinterpret_cast<T *>(stage[t]); });
      if (streams) {
        auto *lines = reinterpret_cast<T *>(assembled);
        store_words(stage, block, op_.dim / depth, reinterpret_cast<float *>(lines));
        stream(lines, key, kBlock * op_.dim);
        write_values(block, head, lines, kBlock * kChannels);
        for (int64_t c = 0; c < op_.dim; c += kChannels, value += layout_.value_block) {
          stream(lines + c * kBlock, value, kBlock * kChannels);
        }
      } else {
        store_words(stage, block, op_.dim / depth, reinterpret_cast<float *>(key));
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
      for (; c + kChunk <= op_.dim; c += kChunk) squares = Row::load(row + c).add_squares(squares);
      if (c < op_.dim) squares = Row::load_n(row + c, static_cast<int>((op_.dim - c) / depth)).add_squares(squares);
    }
    const float mean = Isa::reduce_add(squares) / static_cast<float>(op_.heads * op_.dim);
    return 1.0f / std::sqrt(mean + op_.eps);
  }

  // One head of a block's tokens: normalised, weighted, rotated. to(t) is where a token's row goes, which may be where it is.
  template <class To>
  void project(const HeadRows &x, const void *weight, const Block &block, int64_t head, const float *scale, const Angles &angles,
               const To &to) const {
    const T *by = weight ? static_cast<const T *>(weight) + head * op_.dim : nullptr;
    const auto from = [&](int t) { return x.template row<const T>(block.frame, block.first + t, head); };
    for (int64_t c = 0; c < op_.dim; c += kChunk) {
      const int64_t left = op_.dim - c;
      const bool turns = op_.rotation && turned_from_ < c + kChunk && c < turned_to_;
      if (by == nullptr && !turns) {
        const int64_t bytes = (left < kChunk ? left : kChunk) * static_cast<int64_t>(sizeof(T));
        for (int t = 0; t < block.tokens; ++t) std::memmove(to(t) + c, from(t) + c, bytes);
      } else if (left >= kChunk) {
        const auto store = [](T *at, Vec bits) { std::memcpy(at, &bits, sizeof bits); };
        project_chunk(block, c, by, scale, turns ? &angles : nullptr, from, to, [](const T *at) { return Row::load(at); }, store);
      } else {
        const int words = static_cast<int>(left / depth);
        const auto store = [words](T *at, Vec bits) { std::memcpy(at, &bits, words * sizeof(float)); };
        project_chunk(
            block, c, by, scale, turns ? &angles : nullptr, from, to, [words](const T *at) { return Row::load_n(at, words); },
            store);
      }
    }
  }

  // The channels of a chunk, from `c` on; either `weight` or `angles` may be NULL.
  template <class From, class To, class Load, class Store>
  static void project_chunk(const Block &block, int64_t c, const T *weight, const float *scale, const Angles *angles,
                            const From &from, const To &to, const Load &load, const Store &store) {
    const auto each = [&](const auto &projected) {
      for (int t = 0; t < block.tokens; ++t) store(to(t) + c, projected(load(from(t) + c), t).packed());
    };
    if (weight) {
      const Row by = load(weight + c);
      const auto weighted = [&](const Row &x, int t) { return x.times(Isa::set(scale[t])).rounded().times(by); };
      if (angles) {
        each([&](const Row &x, int t) { return weighted(x, t).rounded().turned((*angles)[t] + c); });
      } else {
        each(weighted);
      }
    } else {
      each([&](const Row &x, int t) { return x.turned((*angles)[t] + c); });
    }
  }

  // [16 tokens][words] to [words][16 tokens].
  static void store_words(const Stage &stage, const Block &block, int64_t words, float *to) {
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

 private:
  const int64_t turned_from_, turned_to_;  // channels
  const bool streams_;
};

}  // namespace
}  // namespace lolrt
