// kv_write for one instruction set.
//
//   x' = round_T(round_T(x * rsqrt(mean(x^2) + eps)) * weight), mean over all heads of a token; pairs of x' from
//   rotation_first_channel on are rotated and rounded to T once. Without a weight x' = x.
//
// Tensors: q, k, v, q_out T [frames, tokens, heads, dim]; weights T [heads, dim]; rotation float32 [tokens, pairs, 2]; pages as
// in core/page_layout.h. A task is a block of 16 tokens of one frame, which is what a block of K in a page holds: K and V of a
// head go through a stage of 16 rows and are then interleaved into the page. Padding of a page is not written.
#pragma once

#include "core/ops.h"
#include "core/threads.h"
#include "cpu/rotate.h"

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
    });
  }

 private:
  struct Block {
    int64_t frame, first;  // first token
    int tokens;
  };

  explicit KvWriteKernel(const KvWrite &op) : op_(op), layout_(op.dtype, op.tokens, op.heads, op.dim) {}

  void write(const Block &block) const {
    float inverse_rms[kBlock];
    if (op_.q.data) {
      measure(op_.q, op_.q_weight, block, inverse_rms);
      for (int64_t head = 0; head < op_.heads; ++head) {
        for (int t = 0; t < block.tokens; ++t) {
          project(op_.q, op_.q_weight, block, t, head, inverse_rms[t],
                  op_.q_out.template row<T>(block.frame, block.first + t, head));
        }
      }
    }
    if (op_.k.data) {
      measure(op_.k, op_.k_weight, block, inverse_rms);
      T *page = static_cast<T *>(op_.pages) + op_.page_table[block.frame] * op_.page_stride;
      T stage[kBlock][PageLayout::max_dim];
      for (int64_t head = 0; head < op_.heads; ++head) {
        for (int t = 0; t < block.tokens; ++t) project(op_.k, op_.k_weight, block, t, head, inverse_rms[t], stage[t]);
        store_keys(stage, block, page + head * layout_.key_head);
        store_values(block, head, page + layout_.values + head * layout_.value_head);
      }
    }
  }

  // 1 / rms of each token over all its heads.
  void measure(const HeadRows &x, const void *weight, const Block &block, float *inverse_rms) const {
    if (weight == nullptr) return;
    for (int t = 0; t < block.tokens; ++t) {
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
      inverse_rms[t] = 1.0f / std::sqrt(mean + op_.eps);
    }
  }

  // One head of one token: normalised, weighted, rotated.
  void project(const HeadRows &x, const void *weight, const Block &block, int t, int64_t head, float inverse_rms, T *to) const {
    const int64_t token = block.first + t;
    const T *from = x.template row<const T>(block.frame, token, head);
    if (weight) {
      const T *head_weight = static_cast<const T *>(weight) + head * op_.dim;
      const Vec scale = Isa::set(inverse_rms);
      const auto normalised = [&](Vec value, Vec by) { return Isa::mul(round(Isa::mul(value, scale)), by); };
      int64_t c = 0;
      for (; c + W <= op_.dim; c += W) Isa::store(to + c, normalised(Isa::load(from + c), Isa::load(head_weight + c)));
      if (c < op_.dim) {
        const int lanes = static_cast<int>(op_.dim - c);
        Isa::store_n(to + c, normalised(Isa::load_n(from + c, lanes), Isa::load_n(head_weight + c, lanes)), lanes);
      }
    } else if (to != from) {
      std::memcpy(to, from, op_.dim * sizeof(T));
    }
    if (op_.rotation) {
      T *first = to + op_.rotation_first_channel;
      rotate<Isa>(static_cast<const T *>(first), op_.rotation + token * op_.pairs * 2, first, 2 * op_.pairs);
    }
  }

  static Vec round(Vec value) {
    if constexpr (is_bf16) {
      return Isa::round_bf16(value);
    } else {
      return value;
    }
  }

  // [16 tokens][dim] to [dim / depth][16][depth].
  void store_keys(const T (&stage)[kBlock][PageLayout::max_dim], const Block &block, T *head_keys) const {
    T *to = head_keys + block.first * op_.dim;
    for (int64_t c = 0; c < op_.dim; c += depth) {
      for (int t = 0; t < block.tokens; ++t) std::memcpy(to + (c * kBlock + t * depth), &stage[t][c], depth * sizeof(T));
    }
  }

  // [tokens][dim] to [tokens / depth][dim][depth].
  void store_values(const Block &block, int64_t head, T *head_values) const {
    const auto row = [&](int t) { return op_.v.template row<const T>(block.frame, block.first + t, head); };
    T *to = head_values + block.first * op_.dim;
    for (int t = 0; t < block.tokens; t += depth, to += depth * op_.dim) {
      if constexpr (depth == 1) {
        std::memcpy(to, row(t), op_.dim * sizeof(T));
      } else if (t + 1 < block.tokens) {
        const T *first = row(t), *second = row(t + 1);
        for (int64_t c = 0; c < op_.dim; ++c) {
          to[2 * c] = first[c];
          to[2 * c + 1] = second[c];
        }
      } else {
        const T *first = row(t);
        for (int64_t c = 0; c < op_.dim; ++c) to[2 * c] = first[c];
      }
    }
  }

  const KvWrite &op_;
  const PageLayout layout_;
};

}  // namespace
}  // namespace lolrt
