// frame_attention over pages of int8 (core/page_layout.h, lolrt.h), for one instruction set.
//
// K of a page is middle + scale * (code - 128), channel by channel, so that a query's scores with the page are
//   <q, K[t]> = <q, middle> + sum over c of q[c] * scale[c] * (code[t, c] - 128)
// q * scale, once q is rotated for the page, is rounded to signed bytes with a scale for the row. The codes are unsigned bytes:
// what the 128 in them adds is a constant of the row, as the first term is.
//
// Weights of a panel are rounded to unsigned bytes, 255 standing for the largest of the row's. They are rounded up or down by a
// fixed pattern (kDither), so that in the mean a weight far below the largest counts for what it is: a single key that all
// queries turn to would otherwise round the hundreds beside it to nothing. Sums add the rounded weights. A panel is of one page,
// as V has scales of its own in each.
#pragma once

#include "cpu/attention_rows.h"
#include "cpu/bytes.h"
#include "cpu/multiply.h"

#include <array>

namespace lolrt {
namespace {

// What is added to a weight before it is cut off to an integer, from 0 to 1: the multiples of the golden ratio, spread evenly
// over any few neighbours. It does not repeat within a panel: tokens of one column of a picture, often 16, 32 or 64 apart and
// much alike, would else all be rounded the same way.
constexpr auto kDither = [] {
  std::array<float, kInt8PanelKeys> parts{};
  double at = 0.0;
  for (float &part : parts) {
    part = static_cast<float>(at);
    at += 0.6180339887498949;
    if (at >= 1.0) at -= 1.0;
  }
  return parts;
}();

// What the rows of attention need to know of the operands.
template <class Isa>
struct ByteOperand {
  using Element = uint32_t;
  using Channel = float;  // of the queries as they are rotated, before they are rounded
  static constexpr int depth = 4, rows = 1;
};

// Sums of b's columns, each times a row of a, in integers: a is broadcast, b read vector by vector from columns of 16 lanes.
template <class Bytes>
struct KeyProducts {  // queries by keys
  using A = int8_t;
  static auto load(const uint32_t *from) { return Bytes::load_unsigned(reinterpret_cast<const uint8_t *>(from)); }
  static auto broadcast(const int8_t *from) { return Bytes::broadcast_signed(from); }
  static void multiply_add(const typename Bytes::Signed &a, const typename Bytes::Unsigned &b, typename Bytes::Ints &sums) {
    Bytes::add_dot(b, a, sums);
  }
};
template <class Bytes>
struct ValueProducts {  // weights by values
  using A = uint8_t;
  static auto load(const uint32_t *from) { return Bytes::load_signed(reinterpret_cast<const int8_t *>(from)); }
  static auto broadcast(const uint8_t *from) { return Bytes::broadcast_unsigned(from); }
  static void multiply_add(const typename Bytes::Unsigned &a, const typename Bytes::Signed &b, typename Bytes::Ints &sums) {
    Bytes::add_dot(a, b, sums);
  }
};

template <class Isa, class Bytes, class T>
class Int8AttentionKernel : public AttentionRows<Int8AttentionKernel<Isa, Bytes, T>, Isa, T, uint8_t, ByteOperand<Isa>, kTileRows,
                                                 Isa::rows, kInt8PanelKeys, kInt8PanelKeys, 1> {
  using Base = AttentionRows<Int8AttentionKernel, Isa, T, uint8_t, ByteOperand<Isa>, kTileRows, Isa::rows, kInt8PanelKeys,
                             kInt8PanelKeys, 1>;
  friend Base;
  using Base::op_;
  using Base::out_row_;
  using Base::query_row_;
  using Base::W;
  using typename Base::Panel;
  using typename Base::Position;
  using typename Base::Tile;
  using typename Base::Vec;
  static constexpr int kPanelKeys = kInt8PanelKeys;
  static constexpr int kVectors = kPanelKeys / W;
  static constexpr int kWord = 4;  // bytes that are multiplied together
  static constexpr int kBlock = PageLayout::block_tokens;
  static constexpr float kLog2MostWeight = 0x1.ffa37cp+2f;  // of 255, the largest weight's
  static_assert(kPanelKeys * 255 * 127 < 1 << 24 && PageLayout::max_dim * 255 * 127 < 1 << 24, "sums are exact in float32");
  static constexpr float kFarAbove = 32.0f;  // powers of two that a panel's maximum may be above the row's before that follows

  struct Scratch : Base::Rows {
    int8_t *codes;     // [kTileRows][code_row], of the rotated queries
    float *scale;      // [kTileRows], of a score in powers of two to its integer sum
    float *shift;      // [kTileRows], what is added to it
    float *scores;     // [kTileRows][kPanelKeys], integer sums
    uint8_t *weights;  // [kTileRows][kPanelKeys]
    float *factor;     // [kTileRows], of the panel's weights

    void take(Arena &arena, const FrameAttention &op) {
      Base::Rows::take(arena, op);
      codes = arena.take<int8_t>(kTileRows * code_row(op.dim));
      scale = arena.take<float>(kTileRows);
      shift = arena.take<float>(kTileRows);
      scores = arena.take<float>(kTileRows * kPanelKeys);
      weights = arena.take<uint8_t>(kTileRows * kPanelKeys);
      factor = arena.take<float>(kTileRows);
    }
  };

  using Base::Base;

  // Whole vectors of channels are written.
  static int64_t code_row(int64_t dim) { return row_elements<int8_t>((dim + W - 1) / W * W); }

  [[gnu::noinline]] void attend(const Tile &tile, const Scratch &s) const {
    const int64_t codes = tile.padded * code_row(op_.dim);
    std::memset(s.codes, 0, codes);
    for (int r = 0; r < tile.padded; ++r) s.factor[r] = 0.0f;
    Panel panel;
    for (Position at; this->next_panel(tile, at, panel);) {
      const Part &part = panel.parts[0];
      if (part.first) take_queries(tile, part.page, s);
      score(tile, part, s);
      for (int r = 0; r < tile.rows; ++r) weigh(r, panel, s);
      add_values(tile, part, s);
    }
  }

  // The queries for a page: rotated, and rounded to bytes.
  [[gnu::noinline]] void take_queries(const Tile &tile, int64_t page, const Scratch &s) const {
    if (this->rotates()) this->rotate_queries(tile, page, s.queries);
    const float *key_scale = this->scales(tile, page), *middle = key_scale + op_.dim;
    alignas(64) float scaled[PageLayout::max_dim];
    const int64_t dim = op_.dim;
    for (int r = 0; r < tile.rows; ++r) {
      const float *query = s.queries + r * query_row_;
      Vec most = Isa::zero(), constant = Isa::zero();
      for (int64_t c = 0; c < dim; c += W) {
        const int lanes = dim - c < W ? static_cast<int>(dim - c) : W;
        const auto load = [lanes](const float *from) { return lanes == W ? Isa::load(from) : Isa::load_n(from, lanes); };
        const Vec x = load(query + c), by = Isa::mul(x, load(key_scale + c));
        constant = Isa::multiply_add(x, load(middle + c), constant);
        most = Isa::max(Isa::max(by, Isa::sub(Isa::zero(), by)), most);
        Isa::store(scaled + c, by);
      }
      const float largest = Isa::reduce_max(most) / kMostCode;
      const float scale = largest > kLeastScale ? largest : kLeastScale;
      // Adding 1.5 * 2^23 leaves the rounded integer in the low bits.
      const Vec inverse = Isa::set(1.0f / scale), magic = Isa::set(0x1.8p23f);
      Vec sum = Isa::zero();
      auto *codes = reinterpret_cast<uint8_t *>(s.codes + r * code_row(dim));
      for (int64_t c = 0; c < dim; c += W) {
        const Vec rounded = Isa::add(Isa::mul(Isa::load(scaled + c), inverse), magic);
        Isa::store_bytes(codes + c, rounded);
        sum = Isa::add(sum, Isa::sub(rounded, magic));
      }
      s.scale[r] = scale * this->score_scale_;
      // Not finite, and then nor is the output, if the query is not, or a channel of the keys.
      s.shift[r] = Isa::reduce_add(constant) * this->score_scale_ - kZeroCode * s.scale[r] * Isa::reduce_add(sum);
    }
  }

  void score(const Tile &tile, const Part &part, const Scratch &s) const {
    const auto *keys = reinterpret_cast<const uint32_t *>(this->keys(tile, part));
    const int64_t steps = this->layout_.key_row / kWord, row = code_row(op_.dim);
    for_columns<Isa>((part.count + W - 1) / W, kBlock * steps, [&](const auto &columns, int vec) {
      for (int r = 0; r < tile.padded; r += Isa::rows) {
        float *to = s.scores + r * kPanelKeys + vec * W;
        multiply<KeyProducts<Bytes>>(s.codes + r * row, row, keys, steps, columns,
                                     [to](int i, int j, Vec sums) { Isa::store(to + i * kPanelKeys + j * W, sums); });
      }
    });
  }

  void add_values(const Tile &tile, const Part &part, const Scratch &s) const {
    const auto *values = reinterpret_cast<const uint32_t *>(this->values(tile, part));
    const float *scales = this->scales(tile, part.page) + 2 * op_.dim;
    const int64_t steps = (part.count + kWord - 1) / kWord;
    for_columns<Isa>(static_cast<int>((op_.dim + W - 1) / W), this->layout_.value_block / kWord,
                     [&](const auto &columns, int vec) {
                       for (int r = 0; r < tile.padded; r += Isa::rows) {
                         float *to = s.output + r * out_row_ + vec * W;
                         const float *factor = s.factor + r;
                         const float *scale = scales + vec * W;
                         const int lanes = static_cast<int>(op_.dim - vec * W);
                         multiply<ValueProducts<Bytes>>(
                             s.weights + r * kPanelKeys, kPanelKeys, values, steps, columns, [&](int i, int j, Vec sums) {
                               const int left = lanes - j * W;
                               const Vec by = left >= W ? Isa::load(scale + j * W) : Isa::load_n(scale + j * W, left);
                               float *at = to + i * out_row_ + j * W;
                               Isa::store(at, Isa::multiply_add(Isa::set(factor[i]), Isa::mul(sums, by), Isa::load(at)));
                             });
                       }
                     });
  }

  // done(row, vector, sums in float) for `Isa::rows` rows and `Vecs` vectors.
  template <class Products, int Vecs, class Done>
  [[gnu::noinline]] static void multiply(const typename Products::A *a, int64_t a_row, const uint32_t *b, int64_t steps,
                                         const int64_t (&columns)[Vecs], const Done &done) {
    typename Bytes::Ints sums[Isa::rows][Vecs];
#pragma GCC unroll 16
    for (int i = 0; i < Isa::rows; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < Vecs; ++j) sums[i][j] = Bytes::zero();
    }
    for (int64_t step = 0; step < steps; ++step) {
      decltype(Products::load(b)) column[Vecs];
#pragma GCC unroll 8
      for (int j = 0; j < Vecs; ++j) column[j] = Products::load(b + columns[j] + step * kBlock);
#pragma GCC unroll 16
      for (int i = 0; i < Isa::rows; ++i) {
        const auto row = Products::broadcast(a + i * a_row + step * kWord);
#pragma GCC unroll 8
        for (int j = 0; j < Vecs; ++j) Products::multiply_add(row, column[j], sums[i][j]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < Isa::rows; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < Vecs; ++j) done(i, j, Bytes::to_float(sums[i][j]));
    }
  }

  // A row's weights, and its part of the sums.
  void weigh(int r, const Panel &panel, const Scratch &s) const {
    const float *scores = s.scores + r * kPanelKeys;
    uint8_t *weights = s.weights + r * kPanelKeys;
    const Part &part = panel.parts[0];
    const int vectors = (part.count + W - 1) / W, whole = part.count / W;
    Vec high = Isa::set(-INFINITY);
    for (int j = 0; j < whole; ++j) high = Isa::max(high, Isa::load(scores + j * W));
    if (whole < vectors) high = Isa::max(high, Isa::first_n(Isa::load(scores + whole * W), part.count - whole * W, -INFINITY));
    const float highest = Isa::reduce_max(high);
    const float max = std::fma(highest, s.scale[r], s.shift[r]), bias = panel.bias[0];
    if (!(bias - s.max[r] + max <= kFarAbove)) this->move_max(r, std::ceil(bias + max), s);

    // Sums are whole numbers below 2^24, so their differences are exact, however large scale, shift and bias are.
    const Vec c = Isa::set(s.scale[r]), top = Isa::set(highest), most = Isa::set(kLog2MostWeight);
    typename Bytes::Ints sum = Bytes::zero();
    const auto weight = [&](int j) {
      const Vec power = exp2<Isa, 2>(Isa::multiply_add(Isa::sub(Isa::load(scores + j * W), top), c, most));
      return Isa::add(power, Isa::load(kDither.data() + j * W));
    };
    const auto weigh_vector = [&](int j) {
      const auto rounded = Bytes::truncated(weight(j));
      sum = Bytes::add(sum, rounded);
      Bytes::store_bytes(weights + j * W, rounded);
    };
    if (whole == kVectors) {
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; ++j) weigh_vector(j);
    } else {
      for (int j = 0; j < whole; ++j) weigh_vector(j);
    }
    if (whole < vectors) {
      const auto rounded = Bytes::truncated(Isa::first_n(weight(whole), part.count - whole * W, 0.0f));
      sum = Bytes::add(sum, rounded);
      Bytes::store_bytes(weights + whole * W, rounded);
    }
    const Vec factor = exp2<Isa, 6>(Isa::set(bias - s.max[r] + max));
    Isa::store_n(s.factor + r, factor, 1);
    const Vec lanes = Isa::mul(Bytes::to_float(sum), factor);
    this->add(lanes, s.lanes + r * W);
    if (!op_.mass) return;
    this->add(lanes, s.page_lanes + r * W);
    if (part.token + part.count == op_.page_tokens) this->end_page(r, part.page, s);
  }
};

}  // namespace
}  // namespace lolrt
