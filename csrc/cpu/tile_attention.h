// frame_attention on matrix tiles: bfloat16, dim a multiple of 32. What it computes and from which layout: frame_attention.h; the
// packed pages are tile operands as they lie.
//
// A task is up to 256 queries of one frame and head. On each page it takes 256 keys at a time, in units of 32 queries by 64 keys:
// while the vector unit turns the scores of one unit into weights, the tile unit already multiplies the next one's. Then all
// weights of the 256 keys meet V, so that an output tile is loaded and stored once in 256 keys.
//
// Tiles: a policy of eight tiles, each of 16 rows of 64 bytes; what its members do: tiles_scalar.h.
#pragma once

#include "cpu/attention_rows.h"

namespace lolrt {
namespace {

template <class Isa, class Op, class Tiles>
class TileAttentionKernel
    : public AttentionRows<TileAttentionKernel<Isa, Op, Tiles>, Isa, Bf16, Op, kTileTaskRows, kTileUnitRows> {
  using Base = AttentionRows<TileAttentionKernel, Isa, Bf16, Op, kTileTaskRows, kTileUnitRows>;
  friend Base;
  using Base::op_;
  using Base::W;
  using typename Base::Element;
  using typename Base::Tile;
  using typename Base::Vec;
  static constexpr int kSide = 16;                  // rows of a tile, and columns of its float32 form
  static constexpr int kDepth = 32;                 // bfloat16 columns: the k's of one tile product
  static constexpr int64_t kTile = kSide * kDepth;  // elements
  static constexpr int kUnitKeys = kTileUnitKeys, kUnitRows = kTileUnitRows, kSpan = kTileSpanKeys;
  static_assert(Op::depth == 2 && kUnitRows == 2 * kSide && kUnitKeys % kDepth == 0 && kSpan % kUnitKeys == 0, "");

  struct Scratch : Base::Rows {
    float *scores;      // [2][kUnitRows][kUnitKeys]: of the unit being weighed and of the next
    Bf16 *weights;      // [kTileTaskRows][kSpan]
    Bf16 *last_values;  // [kDepth / 2][dim][2]: V of a page's last tokens, zero beyond them

    void take(Arena &arena, const FrameAttention &op) {
      Base::Rows::take(arena, op);
      scores = arena.take<float>(2 * kUnitRows * kUnitKeys);
      weights = arena.take<Bf16>(kTileTaskRows * kSpan);
      last_values = arena.take<Bf16>(kDepth * op.dim);
    }
  };

  // Some keys of a page: kSpan of them, or what is left.
  struct Span {
    const Bf16 *keys, *values;
    int count;
  };

  using Base::Base;

 public:
  static bool takes(const FrameAttention &op) { return op.dim % kDepth == 0; }

 private:
  void attend(const Tile &tile, const Bf16 *keys, const Bf16 *values, float bias, const Scratch &s) const {
    Tiles tiles;
    for (int64_t token = 0; token < op_.page_tokens; token += kSpan) {
      const int64_t left = op_.page_tokens - token;
      const Span span{keys + token * op_.dim, values + token * op_.dim, static_cast<int>(left < kSpan ? left : kSpan)};
      weigh(tiles, tile, span, bias, s);
      add_values(tiles, tile, span, s);
    }
  }

  // Scores and weights of a span. Units go strip by strip through 64 keys, so that these stay in the first cache.
  void weigh(Tiles &tiles, const Tile &tile, const Span &span, float bias, const Scratch &s) const {
    const int strips = tile.padded / kUnitRows;
    const int units = (span.count + kUnitKeys - 1) / kUnitKeys * strips;
    const int steps = score_steps();
    for (int step = 0; step < steps; ++step) score_step(tiles, span, 0, strips, step, s);
    for (int unit = 0; unit < units; ++unit) {
      int row = 0;
      for (int step = 0; step < steps; ++step) {
        if (unit + 1 < units) score_step(tiles, span, unit + 1, strips, step, s);
        const int end = kUnitRows * (step + 1) / steps;
        weigh_rows(tile, span, unit, strips, row, end, bias, s);
        row = end;
      }
    }
  }

  // The products of a unit come in equal steps: 32 keys times 32 channels each.
  int score_steps() const { return static_cast<int>(kUnitKeys / kDepth * (op_.dim / kDepth)); }

  void score_step(Tiles &tiles, const Span &span, int unit, int strips, int step, const Scratch &s) const {
    const int channel_steps = static_cast<int>(op_.dim / kDepth);
    const int column = step / channel_steps * 2 * kSide, k = step % channel_steps;
    const int first = unit / strips * kUnitKeys + column;
    if (first >= span.count) return;
    const Bf16 *queries = reinterpret_cast<const Bf16 *>(s.queries) + unit % strips * kUnitRows * op_.dim + k * kDepth;
    const Bf16 *keys = span.keys + first * op_.dim + k * kTile;
    float *scores = s.scores + (unit % 2 * kUnitRows) * kUnitKeys + column;
    const bool both = span.count - first > kSide;  // K is padded to 16 tokens, so there may be one block of them only
    if (k == 0) {
      tiles.template zero<0>();
      tiles.template zero<1>();
      tiles.template zero<2>();
      tiles.template zero<3>();
    }
    tiles.template load<4>(queries, op_.dim);
    tiles.template load<6>(keys, kDepth);
    tiles.template multiply_add<0, 4, 6>();
    tiles.template load<5>(queries + kSide * op_.dim, op_.dim);
    tiles.template multiply_add<2, 5, 6>();
    if (both) {
      tiles.template load<7>(keys + kSide * op_.dim, kDepth);
      tiles.template multiply_add<1, 4, 7>();
      tiles.template multiply_add<3, 5, 7>();
    }
    if (k == channel_steps - 1) {
      tiles.template store<0>(scores, kUnitKeys);
      tiles.template store<2>(scores + kSide * kUnitKeys, kUnitKeys);
      if (both) {
        tiles.template store<1>(scores + kSide, kUnitKeys);
        tiles.template store<3>(scores + kSide * kUnitKeys + kSide, kUnitKeys);
      }
    }
  }

  void weigh_rows(const Tile &tile, const Span &span, int unit, int strips, int begin, int end, float bias,
                  const Scratch &s) const {
    const int first_key = unit / strips * kUnitKeys, first_row = unit % strips * kUnitRows;
    const int left = span.count - first_key;
    end = end < tile.rows - first_row ? end : tile.rows - first_row;
    for (int i = begin; i < end; ++i) {
      const int r = first_row + i;
      const float *scores = s.scores + (unit % 2 * kUnitRows + i) * kUnitKeys;
      Bf16 *row = s.weights + r * kSpan;
      const auto rescale = [&](float factor) {
        for (int j = 0; j < first_key; j += W) Isa::store(row + j, Isa::mul(Isa::load(row + j), Isa::set(factor)));
      };
      auto *weights = reinterpret_cast<Element *>(row + first_key);
      if (left >= kUnitKeys) {
        this->template weigh_row<true>(r, scores, weights, kUnitKeys / W, kUnitKeys, bias, s, rescale);
      } else {
        this->template weigh_row<false>(r, scores, weights, (left + W - 1) / W, left, bias, s, rescale);
        // Up to whole tile products.
        const int written = (left + 2 * W - 1) / (2 * W) * (2 * W), needed = (left + kDepth - 1) / kDepth * kDepth;
        if (written < needed) std::memset(row + first_key + written, 0, (needed - written) * sizeof(Bf16));
      }
    }
  }

  void add_values(Tiles &tiles, const Tile &tile, const Span &span, const Scratch &s) const {
    const int whole = span.count / kDepth, rest = span.count % kDepth;
    if (rest > 0) {
      const int64_t present = rest / 2 * 2 * op_.dim;
      std::memcpy(s.last_values, span.values + whole * kDepth * op_.dim, present * sizeof(Bf16));
      std::memset(s.last_values + present, 0, (kDepth * op_.dim - present) * sizeof(Bf16));
      if (rest % 2) {  // the partner of the last token is padding and may be NaN
        const Bf16 *pairs = span.values + (span.count - 1) * op_.dim;
        for (int64_t c = 0; c < op_.dim; ++c) s.last_values[present + 2 * c] = pairs[2 * c];
      }
    }
    const int64_t pair_row = 2 * op_.dim;  // elements from one pair of tokens to the next
    for (int64_t channel = 0; channel < op_.dim; channel += 2 * kSide) {
      for (int row = 0; row < tile.padded; row += kUnitRows) {
        float *out = s.output + row * op_.dim + channel;
        tiles.template load<0>(out, op_.dim);
        tiles.template load<1>(out + kSide, op_.dim);
        tiles.template load<2>(out + kSide * op_.dim, op_.dim);
        tiles.template load<3>(out + kSide * op_.dim + kSide, op_.dim);
        const auto step = [&](const Bf16 *weights, const Bf16 *values) {
          tiles.template load<4>(weights, kSpan);
          tiles.template load<6>(values, pair_row);
          tiles.template multiply_add<0, 4, 6>();
          tiles.template load<7>(values + 2 * kSide, pair_row);
          tiles.template multiply_add<1, 4, 7>();
          tiles.template load<5>(weights + kSide * kSpan, kSpan);
          tiles.template multiply_add<2, 5, 6>();
          tiles.template multiply_add<3, 5, 7>();
        };
        const Bf16 *weights = s.weights + row * kSpan;
        for (int i = 0; i < whole; ++i) step(weights + i * kDepth, span.values + i * kDepth * op_.dim + 2 * channel);
        if (rest > 0) step(weights + whole * kDepth, s.last_values + 2 * channel);
        tiles.template store<0>(out, op_.dim);
        tiles.template store<1>(out + kSide, op_.dim);
        tiles.template store<2>(out + kSide * op_.dim, op_.dim);
        tiles.template store<3>(out + kSide * op_.dim + kSide, op_.dim);
      }
    }
  }
};

}  // namespace
}  // namespace lolrt
