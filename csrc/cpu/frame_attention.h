// frame_attention for one instruction set.
//
//   score(q, k) = scale * <R(rotation[b, page, frame, head]) q, k> + bias[b, page, head],  out = softmax(score) V over all pages
//
// Tensors: q, out T [frames, tokens, heads, dim]; K T [heads][tokens/16][dim/depth][16][depth] and V T
// [heads][dim/16][tokens/depth][16][depth] in each page, depth = 2 for bfloat16 and 1 for float32; rotation float32 [batch,
// pages, frames / batch, heads, pairs, 2]. T is float or Bf16. b is the batch entry that the frame belongs to.
//
// A task is a tile of up to 96 queries of one frame and head. It walks over the pages of the frame's batch entry, past those that
// are not there or left out; on each it rotates the queries' first 2 * pairs channels anew (K carries no temporal phase). It
// takes the keys in panels, which may belong to several pages:
//   scores = Q K^T      float32, in the scratch of the worker
//   weights             written over the scores; see attention_rows.h
//   output += weights V
// Where the products do not take pairs of bfloat16 as they lie in a page, a panel's K and V are repacked: to the fours that
// another instruction takes, or widened to float32 on CPUs that cannot multiply bfloat16.
//
// Results depend on neither the worker nor the order of the tasks. Padding of a page is read but never used: the weights of
// padded tokens are 0 and their V is not multiplied; padded channels of V come to columns that nobody reads.
#pragma once

#include "cpu/attention_rows.h"
#include "cpu/multiply.h"

namespace lolrt {
namespace {

// Columns of a panel that a page's last keys take: whole blocks of K, and whole operands of the product with V.
template <class Isa, class T>
constexpr int part_keys() {
  return std::max<int>(Isa::width * Isa::template Operand<T>::depth, PageLayout::block_tokens);
}

template <class Isa, class T>
constexpr int panel_keys() {
  return std::max(kPanelVectors * Isa::width, Isa::template Operand<T>::depth == 1 ? kLeastPanelKeys : 2 * kLeastPanelKeys);
}

template <class Isa, class T>
class FrameAttentionKernel : public AttentionRows<FrameAttentionKernel<Isa, T>, Isa, T, T, typename Isa::template Operand<T>,
                                                  kTileRows, Isa::rows, panel_keys<Isa, T>(), part_keys<Isa, T>(), 1> {
  using Op = typename Isa::template Operand<T>;
  static constexpr int kPanelKeys = panel_keys<Isa, T>();
  using Base = AttentionRows<FrameAttentionKernel, Isa, T, T, Op, kTileRows, Isa::rows, kPanelKeys, part_keys<Isa, T>(), 1>;
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
  static constexpr bool repacks = std::is_same<T, Bf16>::value && Op::depth != 2;
  static constexpr int kBlock = PageLayout::block_tokens;

  struct Scratch : Base::Rows {
    float *scores;    // [kTileRows][kPanelKeys]; the weights are written over them
    Element *keys;    // [kPanelKeys / 16][dim / depth][16], repacked
    Element *values;  // [dim / 16][kPanelKeys / depth][16], repacked

    void take(Arena &arena, const FrameAttention &op) {
      Base::Rows::take(arena, op);
      scores = arena.take<float>(kTileRows * kPanelKeys);
      keys = arena.take<Element>(repacks ? kPanelKeys * steps(op.dim) : 0);
      values = arena.take<Element>(repacks ? kPanelKeys / Op::depth * ((op.dim + kBlock - 1) / kBlock * kBlock) : 0);
    }
  };

  using Base::Base;

  // Not inlined into what hands out the tasks, whose variables would take registers from the loops.
  [[gnu::noinline]] void attend(const Tile &tile, const Scratch &s) const {
    Panel panel;
    for (Position at; this->next_panel(tile, at, panel);) {
      for (const Part &part : panel) {
        if (part.first && this->rotates()) this->rotate_queries(tile, part.page, s.queries);
        score(tile, part, key_operands(this->keys(tile, part), part.count, s), s);
      }
      for (int r = 0; r < tile.rows; ++r) {
        this->weigh_row(r, s.scores + r * kPanelKeys, weights(r, s), panel, s, [](float) {});
      }
      add_values(tile, panel, s);
    }
  }

  // Of so many k's; where operands lie in pages, only the whole ones.
  static int64_t steps(int64_t count) { return (count + (repacks ? Op::depth - 1 : 0)) / Op::depth; }

  // A row's weights; those of rows that are multiplied together take turns.
  static Element *weights(int r, const Scratch &s) {
    return reinterpret_cast<Element *>(s.scores + r / Op::rows * Op::rows * kPanelKeys) + r % Op::rows;
  }
  static constexpr int64_t kWeightRow = kPanelKeys * sizeof(float) / sizeof(Element);

  // A part's keys as operands [count / 16][dim / depth][16].
  const Element *key_operands(const T *keys, int count, const Scratch &s) const {
    if constexpr (repacks) {
      Element *to = s.keys;
      for (int t = 0; t < count; t += kBlock, keys += kBlock * op_.dim, to += kBlock * steps(op_.dim)) {
        Op::repack(keys, op_.dim, to);
      }
      return s.keys;
    } else {
      return reinterpret_cast<const Element *>(keys);
    }
  }

  // A part's values as operands [dim / 16][count / depth][16], blocks of 16 channels value_block() elements apart.
  const Element *value_operands(const T *values, const Part &part, const Scratch &s) const {
    if constexpr (repacks) {
      Element *first = s.values + part.column / Op::depth * kBlock, *to = first;
      for (int64_t c = 0; c < op_.dim; c += kBlock, values += layout_.value_block, to += value_block()) {
        Op::repack(values, part.count, to);
      }
      return first;
    } else {
      return reinterpret_cast<const Element *>(values);
    }
  }
  int64_t value_block() const { return (repacks ? kPanelKeys * kBlock : layout_.value_block) / Op::depth; }

  void score(const Tile &tile, const Part &part, const Element *keys, const Scratch &s) const {
    const int64_t row = query_row_ / Op::depth;
    const auto *queries = reinterpret_cast<const Element *>(s.queries);
    const Run<Op> run{keys, 0, steps(op_.dim), false};
    for_columns<Isa>((part.count + W - 1) / W, kBlock * steps(op_.dim), [&](const auto &columns, int vec) {
      for (int r = 0; r < tile.padded; r += Isa::rows) {
        multiply<Isa, Op>(queries + r * row, row, &run, 1, columns, false, s.scores + r * kPanelKeys + part.column + vec * W,
                          kPanelKeys);
      }
    });
  }

  void add_values(const Tile &tile, const Panel &panel, const Scratch &s) const {
    Run<Op> runs[sizeof panel.parts / sizeof *panel.parts];
    for (int i = 0; i < panel.count; ++i) {
      const Part &part = panel.parts[i];
      runs[i] = {value_operands(this->values(tile, part), part, s), part.column / Op::depth, steps(part.count),
                 !repacks && part.count % Op::depth != 0};
    }
    for_columns<Isa>(static_cast<int>((op_.dim + W - 1) / W), value_block(), [&](const auto &columns, int vec) {
      for (int r = 0; r < tile.padded; r += Isa::rows) {
        multiply<Isa, Op>(weights(r, s), kWeightRow, runs, panel.count, columns, true, s.output + r * out_row_ + vec * W,
                          out_row_);
      }
    });
  }
};

}  // namespace
}  // namespace lolrt
