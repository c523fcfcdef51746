// frame_attention for one instruction set.
//
//   score(q, k) = scale * <R(rotation[page, frame, head]) q, k> + bias[page, head],  out = softmax(score) V over all pages
//
// Tensors: q, out T [frames, tokens, heads, dim]; K T [heads][tokens/16][dim/depth][16][depth] and V T
// [heads][tokens/depth][dim][depth] in each page, depth = 2 for bfloat16 and 1 for float32; rotation float32 [pages, frames,
// heads, pairs, 2]. T is float or Bf16.
//
// A task is a tile of up to 96 queries of one frame and head. It walks over the pages; on each it rotates the queries' first
// 2 * pairs channels anew (K carries no temporal phase) and then takes the page's keys 64 at a time:
//   scores = Q K^T      float32, in the scratch of the worker
//   weights             written over the scores; see attention_rows.h
//   output += weights V
// bfloat16 on CPUs that cannot multiply it is widened to float32 tile by tile.
//
// Results depend on neither the worker nor the order of the tasks. Padding of a page is read (K's) but never used: the scores of
// padded tokens are replaced, their V is not multiplied.
#pragma once

#include "cpu/attention_rows.h"
#include "cpu/multiply.h"

namespace lolrt {
namespace {

// f(std::integral_constant<int, n>{}) for n in 1..Max.
template <int Max, class F>
inline void with_count(int n, const F &f) {
  if constexpr (Max > 1) {
    if (n < Max) return with_count<Max - 1>(n, f);
  }
  f(std::integral_constant<int, Max>{});
}

template <class Isa, class T>
class FrameAttentionKernel
    : public AttentionRows<FrameAttentionKernel<Isa, T>, Isa, T, typename Isa::template Operand<T>, kTileRows, Isa::rows> {
  using Op = typename Isa::template Operand<T>;
  using Base = AttentionRows<FrameAttentionKernel, Isa, T, Op, kTileRows, Isa::rows>;
  friend Base;
  using Base::elements_;
  using Base::op_;
  using Base::out_row_;
  using Base::W;
  using typename Base::Element;
  using typename Base::Tile;
  static constexpr bool widens = std::is_same<T, Bf16>::value && Op::depth == 1;
  static_assert(kTileKeys % (W * Op::depth) == 0, "keys are whole vectors");

  struct Scratch : Base::Rows {
    float *scores;  // [kTileRows][kTileKeys]; the weights are written over them
    float *keys;    // [kTileKeys / 16][dim][16], widened
    float *values;  // [kTileKeys][dim], widened

    void take(Arena &arena, const FrameAttention &op) {
      Base::Rows::take(arena, op);
      scores = arena.take<float>(kTileRows * kTileKeys);
      keys = arena.take<float>(widens ? kTileKeys * op.dim : 0);
      values = arena.take<float>(widens ? kTileKeys * op.dim : 0);
    }
  };

  using Base::Base;

  void attend(const Tile &tile, const T *keys, const T *values, float bias, const Scratch &s) const {
    for (int64_t token = 0; token < op_.page_tokens; token += kTileKeys) {
      const int64_t left = op_.page_tokens - token;
      const int count = static_cast<int>(left < kTileKeys ? left : kTileKeys);
      // A tile starts on a whole block of 16 tokens, so both parts are `token` rows of dim elements further on.
      score(tile, key_tile(keys + token * op_.dim, count, s), count, s);
      if (count == kTileKeys) {
        weigh<true>(tile, count, bias, s);
      } else {
        weigh<false>(tile, count, bias, s);
      }
      add_values(tile, value_tile(values + token * op_.dim, count, s), count, s);
    }
  }

  // The tile's keys as operands [count / 16][elements][16].
  const Element *key_tile(const T *keys, int count, const Scratch &s) const {
    if constexpr (widens) {
      const auto *pairs = reinterpret_cast<const uint32_t *>(keys);
      const int64_t groups = (count + 15) / 16 * (op_.dim / 2);
      for (int64_t i = 0; i < groups; ++i) Isa::widen_pairs(pairs + 16 * i, s.keys + 32 * i, s.keys + 32 * i + 16, 16);
      return s.keys;
    } else {
      return reinterpret_cast<const Element *>(keys);
    }
  }

  // The tile's values as operands [count / depth][dim].
  const Element *value_tile(const T *values, int count, const Scratch &s) const {
    if constexpr (widens) {
      const auto *pairs = reinterpret_cast<const uint32_t *>(values);
      for (int64_t t = 0; t < count; t += 2, pairs += op_.dim) {
        Isa::widen_pairs(pairs, s.values + t * op_.dim, s.values + (t + 1) * op_.dim, op_.dim);
      }
      return s.values;
    } else {
      return reinterpret_cast<const Element *>(values);
    }
  }

  void score(const Tile &tile, const Element *keys, int count, const Scratch &s) const {
    const int vecs = (count + W - 1) / W;
    for (int vec = 0; vec < vecs; vec += Isa::vecs) {
      with_count<Isa::vecs>(vecs - vec, [&](auto count_constant) {
        constexpr int n = decltype(count_constant)::value;
        const Element *columns[n];
        for (int j = 0; j < n; ++j) {
          const int lane = (vec + j) * W;
          columns[j] = keys + lane / 16 * 16 * elements_ + lane % 16;
        }
        for (int r = 0; r < tile.padded; r += Isa::rows) {
          multiply<Isa, Op, n, false>(s.queries + r * elements_, elements_, columns, 16, elements_, false, {}, false,
                                      s.scores + r * kTileKeys + vec * W, kTileKeys);
        }
      });
    }
  }

  // Full: all kTileKeys are there.
  template <bool Full>
  void weigh(const Tile &tile, int count, float bias, const Scratch &s) const {
    const int vecs = Full ? kTileKeys / W : (count + W - 1) / W;
    for (int r = 0; r < tile.rows; ++r) {
      float *row = s.scores + r * kTileKeys;
      this->template weigh_row<Full>(r, row, reinterpret_cast<Element *>(row), vecs, count, bias, s, [](float) {});
    }
  }

  void add_values(const Tile &tile, const Element *values, int count, const Scratch &s) const {
    const auto *weights = reinterpret_cast<const Element *>(s.scores);
    const int vecs = static_cast<int>(out_row_ / W);
    const Tail tail{static_cast<int>(op_.dim % W)};
    for (int vec = 0; vec < vecs; vec += Isa::vecs) {
      with_count<Isa::vecs>(vecs - vec, [&](auto count_constant) {
        constexpr int n = decltype(count_constant)::value;
        const Element *columns[n];
        for (int j = 0; j < n; ++j) columns[j] = values + (vec + j) * W;
        const auto blocks = [&](auto tail_constant) {
          constexpr bool has_tail = decltype(tail_constant)::value;
          for (int r = 0; r < tile.padded; r += Isa::rows) {
            multiply<Isa, Op, n, has_tail>(weights + r * kTileKeys, kTileKeys, columns, op_.dim, count / Op::depth,
                                           count % Op::depth != 0, tail, true, s.output + r * out_row_ + vec * W, out_row_);
          }
        };
        if (tail.lanes > 0 && vec + n == vecs) {
          blocks(std::true_type{});
        } else {
          blocks(std::false_type{});
        }
      });
    }
  }
};

}  // namespace
}  // namespace lolrt
