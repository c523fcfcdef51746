// frame_attention on matrix tiles, for bfloat16. What it computes and from which layout: frame_attention.h; the packed pages are
// tile operands as they lie.
//
// A task is up to 512 queries of one frame and head. It takes the keys in spans of four panels: scores and weights of 32 queries
// at a time go through a panel, whose keys stay in the first cache, and then all weights of the span meet V, so that an output
// tile is loaded and stored once in 256 keys.
//
// A tile product takes 32 channels, or 32 keys: a panel is two halves of 32 columns, each of one page. Where a page's keys or the
// channels end within a product, what is there is copied and filled up with zeros.
//
// Tiles: a policy of eight tiles, each of 16 rows of 64 bytes; what its members do: tiles_scalar.h.
#pragma once

#include "cpu/attention_rows.h"

namespace lolrt {
namespace {

template <class Isa, class Op, class Tiles>
class TileAttentionKernel
    : public AttentionRows<TileAttentionKernel<Isa, Op, Tiles>, Isa, Bf16, Bf16, Op, kTileTaskRows, 32, kTilePanelKeys, 32, 2> {
  using Base = AttentionRows<TileAttentionKernel, Isa, Bf16, Bf16, Op, kTileTaskRows, 32, kTilePanelKeys, 32, 2>;
  friend Base;
  using Base::layout_;
  using Base::op_;
  using Base::out_row_;
  using Base::query_row_;
  using Base::W;
  using typename Base::Element;
  using typename Base::Panel;
  using typename Base::Position;
  using typename Base::Tile;
  static constexpr int kSide = 16;                  // rows of a tile, and columns of its float32 form
  static constexpr int kDepth = 32;                 // bfloat16 columns: the k's of one tile product
  static constexpr int64_t kTile = kSide * kDepth;  // elements
  static constexpr int kStrip = 2 * kSide;          // rows: queries that are multiplied together
  static constexpr int kHalves = 2;                 // of a panel
  static constexpr int kPanels = kTileSpanKeys / kTilePanelKeys;
  static constexpr int64_t kWeightRow = row_elements<Bf16>(kTileSpanKeys);
  static_assert(Op::depth == 2 && kTilePanelKeys == kHalves * kDepth && kTileSpanKeys % kTilePanelKeys == 0, "");

  struct Scratch : Base::Rows {
    float *scores;      // [kStrip][kTilePanelKeys]
    Bf16 *weights;      // [kTileTaskRows][kWeightRow]
    Bf16 *last_keys;    // [kTilePanelKeys / 16][kTile]: the last dim % 32 channels of a panel's keys, zero beyond them
    Bf16 *last_values;  // [kPanels * kHalves][dim / 16][kTile]: V of the last tokens of pages, zero beyond them

    void take(Arena &arena, const FrameAttention &op) {
      Base::Rows::take(arena, op);
      scores = arena.take<float>(kStrip * kTilePanelKeys);
      weights = arena.take<Bf16>(kTileTaskRows * kWeightRow);
      last_keys = arena.take<Bf16>(op.dim % kDepth ? kTilePanelKeys / kSide * kTile : 0);
      last_values = arena.take<Bf16>(kPanels * kHalves * blocks(op) * kTile);
    }
  };

  // What the scores of half a panel are made of.
  struct Half {
    const Bf16 *queries, *keys;
    int keys_left;  // in the part of the panel, this half's included; none: 0
  };

  // The panels that meet V together, and the operands of the one whose scores are made.
  struct Span {
    Panel panels[kPanels];
    int count;
    Half halves[kHalves];
  };

  // V of the keys of one product: tiles `block` elements apart.
  struct Values {
    const Bf16 *tiles;
    int64_t block;
  };

  using Base::Base;

  static int64_t blocks(const FrameAttention &op) { return (op.dim + kSide - 1) / kSide; }  // of channels of V

  void attend(const Tile &tile, const Scratch &s) const {
    if (op_.dim % kDepth) std::memset(s.last_keys, 0, kTilePanelKeys / kSide * kTile * sizeof(Bf16));
    Tiles tiles;
    Position at;
    int copy = 0;
    for (;;) {
      Span span;
      for (span.count = 0; span.count < kPanels && this->next_panel(tile, at, span.panels[span.count]);) ++span.count;
      if (span.count == 0) return;
      weigh(tiles, tile, span, copy, s);
      add_values(tiles, tile, span, s);
    }
  }

  // Scores and weights of a span. To multiply the next 32 queries while these are weighed gains nothing: beside tile products the
  // vector unit takes one instruction a cycle instead of two.
  void weigh(Tiles &tiles, const Tile &tile, Span &span, int &copy, const Scratch &s) const {
    for (int i = 0; i < span.count; ++i) {
      prepare(tile, span, span.panels[i], copy, s);
      for (int strip = 0; strip < tile.padded; strip += kStrip) {
        for (int half = 0; half < kHalves; ++half) {
          if (span.halves[half].keys_left > 0) score(tiles, span.halves[half], half, strip, s);
        }
        weigh_strip(tile, span.panels[i], i * kTilePanelKeys, strip, s);
      }
    }
  }

  // Rotates queries for the pages that begin in the panel, and says what its halves multiply.
  void prepare(const Tile &tile, Span &span, const Panel &panel, int &copy, const Scratch &s) const {
    for (Half &half : span.halves) half.keys_left = 0;
    for (const Part &part : panel) {
      if (part.first && this->rotates()) {
        copy ^= 1;
        this->rotate_queries(tile, part.page, copy_of_queries(copy, s));
      }
      const Bf16 *keys = this->keys(tile, part);
      for (int first = 0; first < part.count; first += kDepth) {
        span.halves[(part.column + first) / kDepth] = {copy_of_queries(copy, s), keys + first * op_.dim, part.count - first};
      }
      if (op_.dim % kDepth) copy_last_channels(keys, part, s);
    }
  }

  Bf16 *copy_of_queries(int copy, const Scratch &s) const { return s.queries + copy * kTileTaskRows * query_row_; }

  void copy_last_channels(const Bf16 *keys, const Part &part, const Scratch &s) const {
    const int64_t whole = op_.dim / kDepth * kDepth;
    for (int first = 0; first < part.count; first += kSide) {
      std::memcpy(s.last_keys + (part.column + first) / kSide * kTile, keys + first * op_.dim + whole * kSide,
                  (op_.dim - whole) * kSide * sizeof(Bf16));
    }
  }

  // Half a panel's scores of 32 queries.
  void score(Tiles &tiles, const Half &operands, int half, int strip, const Scratch &s) const {
    tiles.template zero<0>();
    tiles.template zero<1>();
    tiles.template zero<2>();
    tiles.template zero<3>();
    const bool both = operands.keys_left > kSide;  // K is padded to 16 tokens, so there may be one block of them only
    const Bf16 *queries = operands.queries + strip * query_row_;
    const auto step = [&](const Bf16 *keys, int64_t next_block) {
      tiles.template load<4>(queries, query_row_);
      tiles.template load<6>(keys, kDepth);
      tiles.template multiply_add<0, 4, 6>();
      tiles.template load<5>(queries + kSide * query_row_, query_row_);
      tiles.template multiply_add<2, 5, 6>();
      if (both) {
        tiles.template load<7>(keys + next_block, kDepth);
        tiles.template multiply_add<1, 4, 7>();
        tiles.template multiply_add<3, 5, 7>();
      }
      queries += kDepth;
    };
    for (int64_t k = 0; k < op_.dim / kDepth; ++k) step(operands.keys + k * kTile, kSide * op_.dim);
    if (op_.dim % kDepth) step(s.last_keys + half * 2 * kTile, kTile);
    float *scores = s.scores + half * kDepth;
    tiles.template store<0>(scores, kTilePanelKeys);
    tiles.template store<2>(scores + kSide * kTilePanelKeys, kTilePanelKeys);
    if (both) {
      tiles.template store<1>(scores + kSide, kTilePanelKeys);
      tiles.template store<3>(scores + kSide * kTilePanelKeys + kSide, kTilePanelKeys);
    }
  }

  // first_key: the panel's first column in the span.
  void weigh_strip(const Tile &tile, const Panel &panel, int first_key, int strip, const Scratch &s) const {
    const float *scores = s.scores;
    for (int r = strip; r < std::min(strip + kStrip, tile.rows); ++r, scores += kTilePanelKeys) {
      Bf16 *row = s.weights + r * kWeightRow;
      const auto rescale = [&](float factor) {
        for (int j = 0; j < first_key; j += W) Isa::store(row + j, Isa::mul(Isa::load(row + j), Isa::set(factor)));
      };
      this->weigh_row(r, scores, reinterpret_cast<Element *>(row + first_key), panel, s, rescale);
    }
  }

  void add_values(Tiles &tiles, const Tile &tile, const Span &span, const Scratch &s) const {
    Values values[kPanels * kHalves];
    int products = 0;
    for (int panel = 0; panel < span.count; ++panel) {
      for (const Part &part : span.panels[panel]) {
        const Bf16 *from = this->values(tile, part);
        for (int first = 0; first < part.count; first += kDepth, from += kTile) {
          const Values lying{from, layout_.value_block};
          const int left = part.count - first;
          values[products] = left >= kDepth ? lying : filled_up(lying, left, s.last_values + products * blocks(op_) * kTile);
          ++products;
        }
      }
    }
    for (int64_t block = 0; block < blocks(op_); block += 2) {
      if (block + 1 < blocks(op_)) {
        add_products<true>(tiles, tile, values, products, block, s);
      } else {
        add_products<false>(tiles, tile, values, products, block, s);
      }
    }
  }

  // A copy of `count` < 32 keys, zero beyond them.
  Values filled_up(const Values &values, int count, Bf16 *to) const {
    constexpr int64_t pair = 2 * kSide;  // elements of two tokens in a block
    for (int64_t block = 0; block < blocks(op_); ++block) {
      const Bf16 *from = values.tiles + block * values.block;
      Bf16 *tile = to + block * kTile;
      for (int t = 0; t < kDepth; t += 2, from += pair, tile += pair) {
        if (t + 1 < count) {
          std::memcpy(tile, from, pair * sizeof(Bf16));
        } else {
          std::memset(static_cast<void *>(tile), 0, pair * sizeof(Bf16));
          // The partner of the last token is padding and may be NaN.
          for (int64_t c = 0; t < count && c < pair; c += 2) tile[c] = from[c];
        }
      }
    }
    return {to, kTile};
  }

  // One block of 16 channels, or two side by side, of all rows.
  template <bool Both>
  void add_products(Tiles &tiles, const Tile &tile, const Values *values, int products, int64_t block, const Scratch &s) const {
    for (int row = 0; row < tile.padded; row += kStrip) {
      float *out = s.output + row * out_row_ + block * kSide;
      tiles.template load<0>(out, out_row_);
      tiles.template load<2>(out + kSide * out_row_, out_row_);
      if constexpr (Both) {
        tiles.template load<1>(out + kSide, out_row_);
        tiles.template load<3>(out + kSide * out_row_ + kSide, out_row_);
      }
      const Bf16 *weights = s.weights + row * kWeightRow;
      for (int i = 0; i < products; ++i, weights += kDepth) {
        const Bf16 *v = values[i].tiles + block * values[i].block;
        tiles.template load<4>(weights, kWeightRow);
        tiles.template load<6>(v, kDepth);
        tiles.template multiply_add<0, 4, 6>();
        if constexpr (Both) {
          tiles.template load<7>(v + values[i].block, kDepth);
          tiles.template multiply_add<1, 4, 7>();
        }
        tiles.template load<5>(weights + kSide * kWeightRow, kWeightRow);
        tiles.template multiply_add<2, 5, 6>();
        if constexpr (Both) tiles.template multiply_add<3, 5, 7>();
      }
      tiles.template store<0>(out, out_row_);
      tiles.template store<2>(out + kSide * out_row_, out_row_);
      if constexpr (Both) {
        tiles.template store<1>(out + kSide, out_row_);
        tiles.template store<3>(out + kSide * out_row_ + kSide, out_row_);
      }
    }
  }
};

}  // namespace
}  // namespace lolrt
