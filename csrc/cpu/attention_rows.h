// What every frame_attention kernel does for the queries of one task, whatever multiplies its matrices: the rotation for each
// page, the running maximum and sum of each row, the weights, the output's last scaling, and the mass on each page.
//
//   weights = 2^(c * score + b - max)   c and b being scale and bias times log2(e)
//
// `max` is a running maximum, a whole number, that moves only when the scores pass it by 2^8; the output and the sums are then
// rescaled, by a power of two and so exactly. Where the weights are rounded to bfloat16 for the product with V, the sum adds the
// rounded ones.
#pragma once

#include "core/ops.h"
#include "core/threads.h"
#include "cpu/arena.h"
#include "cpu/exp2.h"
#include "cpu/rotate.h"
#include "cpu/tuning.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace lolrt {
namespace {

constexpr float kLog2E = 0x1.715476p+0f;

// Kernel: the class that derives from this one. It has
//   struct Scratch : Rows with take(arena, op)   what one worker needs for one task
//   attend(tile, keys, values, bias, scratch)    scores, weights and products of one page
// Op: the operand format of the products. A task has at most MaxRows queries of one frame and head, in whole blocks of BlockRows.
template <class Kernel, class Isa, class T, class Op, int MaxRows, int BlockRows>
class AttentionRows {
 protected:
  using Vec = typename Isa::Vec;
  using Element = typename Op::Element;
  static constexpr int W = Isa::width;
  static_assert(MaxRows % BlockRows == 0 && MaxRows % W == 0, "a task is whole blocks, and whole vectors of row state");

  struct Rows {
    Element *queries;  // [MaxRows][dim / depth], rotated for the page in hand
    float *output;     // [MaxRows][out_row]
    float *lanes;      // [MaxRows][width], sums of this page's weights lane by lane
    float *max;        // [MaxRows], in powers of two
    float *sum;        // [MaxRows], of all weights up to the page's start
    float *page_max;   // [pages][MaxRows], for the mass
    float *page_sum;   // [pages][MaxRows]

    void take(Arena &arena, const FrameAttention &op) {
      queries = arena.take<Element>(MaxRows * op.dim / Op::depth);
      output = arena.take<float>(MaxRows * out_row(op.dim));
      lanes = arena.take<float>(MaxRows * W);
      max = arena.take<float>(MaxRows);
      sum = arena.take<float>(MaxRows);
      page_max = arena.take<float>(op.mass ? op.pages * MaxRows : 0);
      page_sum = arena.take<float>(op.mass ? op.pages * MaxRows : 0);
    }
  };

  // The queries of one task.
  struct Tile {
    int64_t frame, head, first;
    int rows;    // of queries
    int padded;  // rows up to whole blocks; those beyond `rows` are zero
  };

 public:
  static uint64_t workspace_bytes(const FrameAttention &op) { return scratch_bytes(op) * op.workers + mass_parts_bytes(op); }

  static void run(const FrameAttention &op) { Kernel(op).run_tasks(); }

 protected:
  explicit AttentionRows(const FrameAttention &op)
      : op_(op),
        layout_(op.dtype, op.page_tokens, op.heads, op.dim),
        elements_(op.dim / Op::depth),
        out_row_(out_row(op.dim)),
        blocks_((op.tokens + BlockRows - 1) / BlockRows),
        tiles_(tile_count(op)),
        score_scale_(op.scale * kLog2E),
        mass_parts_(op.mass ? static_cast<float *>(op.workspace) : nullptr),
        scratch_bytes_(scratch_bytes(op)) {}

  static int64_t out_row(int64_t dim) { return (dim + W - 1) / W * W; }

  // Scores of one row to weights. scores and weights may be the same memory. Full: `count` is vecs * W. raised(factor) is called
  // when the row's maximum moves, to rescale weights that are already there.
  template <bool Full, class Raised>
  void weigh_row(int r, const float *scores, Element *weights, int vecs, int count, float bias, const Rows &s,
                 const Raised &raised) const {
    const int last = count - (vecs - 1) * W;  // lanes of the last vector
    const Vec c = Isa::set(score_scale_);
    const auto score = [&](int j) {
      const Vec vec = Isa::load(scores + j * W);
      return !Full && j == vecs - 1 ? Isa::first_n(vec, last, -INFINITY) : vec;
    };
    Vec high = score(0);
    for (int j = 1; j < vecs; ++j) high = Isa::max(high, score(j));
    if (Isa::any_above(Isa::multiply_add(high, c, Isa::set(bias - s.max[r])), kRescaleAbove)) {
      raised(raise_max(r, std::ceil(Isa::reduce_max(high) * score_scale_ + bias), s));
    }
    const Vec shift = Isa::set(bias - s.max[r]);
    Vec lanes = Isa::load(s.lanes + r * W);
    for (int j = 0; j < vecs; j += Op::depth) {
      Vec group[Op::depth];
      for (int i = 0; i < Op::depth; ++i) {
        if (!Full && j + i >= vecs) {
          group[i] = Isa::zero();
          continue;
        }
        group[i] = exp2<Isa, Op::exp2_degree>(Isa::multiply_add(Isa::load(scores + (j + i) * W), c, shift));
        if (!Full && j + i == vecs - 1) group[i] = Isa::first_n(group[i], last, 0.0f);
      }
      const typename Op::Reg rounded = Op::narrow(group);
      lanes = Op::multiply_add(rounded, Op::ones(), lanes);
      Op::store(weights + j / Op::depth * W, rounded);
    }
    Isa::store(s.lanes + r * W, lanes);
  }

  const FrameAttention &op_;
  const PageLayout layout_;
  const int64_t elements_;  // of one query row
  const int64_t out_row_;

 private:
  static int64_t tile_count(const FrameAttention &op) { return (op.tokens + MaxRows - 1) / MaxRows; }
  static uint64_t scratch_bytes(const FrameAttention &op) {
    Arena arena(nullptr);
    typename Kernel::Scratch().take(arena, op);
    return arena.bytes();
  }
  // One number per task and page: the mass that the task's rows spend on it. Added up in order at the end.
  static uint64_t mass_parts_bytes(const FrameAttention &op) {
    Arena arena(nullptr);
    arena.take<float>(op.mass ? op.heads * op.frames * tile_count(op) * op.pages : 0);
    return arena.bytes();
  }

  void run_tasks() const {
    // Heads are outermost: workers that run side by side read the same K and V.
    parallel_for(op_.heads * op_.frames * tiles_, op_.workers, [this](int64_t task, int32_t worker) { run_task(task, worker); });
    if (op_.mass) add_mass_parts();
  }

  void run_task(int64_t task, int32_t worker) const {
    Arena arena(static_cast<char *>(op_.workspace) + mass_parts_bytes(op_) + worker * scratch_bytes_);
    typename Kernel::Scratch scratch;
    scratch.take(arena, op_);
    const int64_t index = task % tiles_;
    Tile tile;
    tile.head = task / tiles_ / op_.frames;
    tile.frame = task / tiles_ % op_.frames;
    // Whole blocks, spread evenly over the tiles.
    tile.first = blocks_ * index / tiles_ * BlockRows;
    const int64_t end = blocks_ * (index + 1) / tiles_ * BlockRows;
    tile.padded = static_cast<int>(end - tile.first);
    tile.rows = static_cast<int>((end < op_.tokens ? end : op_.tokens) - tile.first);

    begin(tile, scratch);
    const Kernel &kernel = static_cast<const Kernel &>(*this);
    for (int64_t page = 0; page < op_.pages; ++page) {
      const float bias = op_.bias ? op_.bias[page * op_.heads + tile.head] * kLog2E : 0.0f;
      if (bias == -INFINITY) continue;
      if (op_.rotation && op_.pairs > 0) rotate_queries(tile, page, scratch);
      const T *start = static_cast<const T *>(op_.pool) + op_.page_table[page] * op_.page_stride;
      kernel.attend(tile, start + tile.head * layout_.key_head, start + layout_.values + tile.head * layout_.value_head, bias,
                    scratch);
      end_page(tile, page, scratch);
    }
    finish(tile, scratch);
    if (op_.mass) store_mass_part(task, tile, scratch);
  }

  void begin(const Tile &tile, const Rows &s) const {
    for (int r = 0; r < tile.rows; ++r) convert_query(tile, r, s);
    std::memset(s.queries + tile.rows * elements_, 0, (tile.padded - tile.rows) * elements_ * sizeof(Element));
    std::memset(s.output, 0, tile.padded * out_row_ * sizeof(float));
    std::memset(s.lanes, 0, tile.padded * W * sizeof(float));
    for (int r = 0; r < tile.padded; ++r) {
      s.max[r] = -INFINITY;
      s.sum[r] = 0.0f;
    }
  }

  const T *query(const Tile &tile, int row) const { return op_.q.template row<const T>(tile.frame, tile.first + row, tile.head); }

  typename Op::Channel *query_copy(int row, const Rows &s) const {
    return reinterpret_cast<typename Op::Channel *>(s.queries + row * elements_);
  }

  void convert_query(const Tile &tile, int row, const Rows &s) const {
    if constexpr (std::is_same<T, typename Op::Channel>::value) {
      std::memcpy(query_copy(row, s), query(tile, row), op_.dim * sizeof(T));
    } else {
      convert<Isa>(query(tile, row), query_copy(row, s), op_.dim);
    }
  }

  void rotate_queries(const Tile &tile, int64_t page, const Rows &s) const {
    const float *cos_sin = op_.rotation + ((page * op_.frames + tile.frame) * op_.heads + tile.head) * op_.pairs * 2;
    for (int r = 0; r < tile.rows; ++r) rotate<Isa>(query(tile, r), cos_sin, query_copy(r, s), 2 * op_.pairs);
  }

  // Returns what everything weighed so far has to be multiplied by.
  float raise_max(int r, float max, const Rows &s) const {
    const float factor = s.max[r] == -INFINITY ? 0.0f : std::exp2(s.max[r] - max);
    s.max[r] = max;
    s.sum[r] *= factor;
    const Vec scale = Isa::set(factor);
    Isa::store(s.lanes + r * W, Isa::mul(scale, Isa::load(s.lanes + r * W)));
    float *row = s.output + r * out_row_;
    for (int64_t c = 0; c < out_row_; c += W) Isa::store(row + c, Isa::mul(scale, Isa::load(row + c)));
    return factor;
  }

  void end_page(const Tile &tile, int64_t page, const Rows &s) const {
    for (int r = 0; r < tile.rows; ++r) {
      const float page_sum = Isa::reduce_add(Isa::load(s.lanes + r * W));
      Isa::store(s.lanes + r * W, Isa::zero());
      s.sum[r] += page_sum;
      if (op_.mass) {
        s.page_max[page * MaxRows + r] = s.max[r];
        s.page_sum[page * MaxRows + r] = page_sum;
      }
    }
  }

  void finish(const Tile &tile, const Rows &s) const {
    const int64_t whole = op_.dim / W * W;
    for (int r = 0; r < tile.rows; ++r) {
      // A head whose pages are all left out has no weights: its output is 0.
      const float inverse = s.sum[r] == 0.0f ? 0.0f : 1.0f / s.sum[r];
      s.sum[r] = inverse;
      const Vec scale = Isa::set(inverse);
      const float *from = s.output + r * out_row_;
      T *to = op_.out.template row<T>(tile.frame, tile.first + r, tile.head);
      for (int64_t c = 0; c < whole; c += W) Isa::store(to + c, Isa::mul(scale, Isa::load(from + c)));
      if (whole < op_.dim) Isa::store_n(to + whole, Isa::mul(scale, Isa::load(from + whole)), static_cast<int>(op_.dim - whole));
    }
  }

  void store_mass_part(int64_t task, const Tile &tile, const Rows &s) const {
    for (int64_t page = 0; page < op_.pages; ++page) {
      float part = 0.0f;
      if (!op_.bias || op_.bias[page * op_.heads + tile.head] != -INFINITY) {
        const float *max = s.page_max + page * MaxRows, *sum = s.page_sum + page * MaxRows;
        Vec parts = Isa::zero();
        for (int r = 0; r < tile.rows; r += W) {
          const int rows = tile.rows - r < W ? tile.rows - r : W;
          const Vec factor = exp2<Isa, 6>(Isa::sub(Isa::load(max + r), Isa::load(s.max + r)));
          const Vec weight = Isa::mul(Isa::mul(Isa::load(sum + r), factor), Isa::load(s.sum + r));
          parts = Isa::add(parts, Isa::first_n(weight, rows, 0.0f));
        }
        part = Isa::reduce_add(parts);
      }
      mass_parts_[task * op_.pages + page] = part;
    }
  }

  void add_mass_parts() const {
    for (int64_t page = 0; page < op_.pages; ++page) {
      for (int64_t frame = 0; frame < op_.frames; ++frame) {
        for (int64_t head = 0; head < op_.heads; ++head) {
          double mass = 0.0;
          for (int64_t tile = 0; tile < tiles_; ++tile) {
            mass += mass_parts_[((head * op_.frames + frame) * tiles_ + tile) * op_.pages + page];
          }
          op_.mass[(page * op_.frames + frame) * op_.heads + head] = static_cast<float>(mass / static_cast<double>(op_.tokens));
        }
      }
    }
  }

  const int64_t blocks_;  // of queries in a frame
  const int64_t tiles_;   // tasks of a frame and head
  const float score_scale_;
  float *const mass_parts_;  // [tasks][pages], at the workspace's start
  const uint64_t scratch_bytes_;
};

}  // namespace
}  // namespace lolrt
