// What every frame_attention kernel does for the queries of one task, whatever multiplies its matrices: the walk over the pages,
// the rotation for each, the running maximum and sum of each row, the weights, the output's last scaling, and the mass on each
// page.
//
//   weights = 2^(c * score + b - max)   c and b being scale and bias times log2(e)
//
// The keys of all pages are taken in panels of PanelKeys columns. A page has a panel to itself as long as it can fill it; its
// last keys share one with the next page's first, so that short pages do not leave the registers empty.
//
// `max` is a running maximum, a whole number. Weights are made with the one that is there; only if they come out too large it is
// raised and they are made anew. The output and the sums are then rescaled, by a power of two and so exactly. Where the weights
// are rounded to bfloat16 for the product with V, the sum adds the rounded ones.
#pragma once

#include "core/ops.h"
#include "core/threads.h"
#include "cpu/arena.h"
#include "cpu/operand.h"
#include "cpu/rotate.h"
#include "cpu/tuning.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace lolrt {
namespace {

constexpr float kLog2E = 0x1.715476p+0f;

// Some keys of one page, in neighbouring columns of a panel.
struct Part {
  int64_t page, token;  // token: the first, a multiple of 16
  int count, column;
  bool first;  // of its page
};

// Elements of a row of at least `count`: an odd number of cache lines, so that neighbouring rows lie in different sets of L1.
template <class T>
constexpr int64_t row_elements(int64_t count) {
  constexpr int64_t line = 64 / sizeof(T);
  return ((count + line - 1) / line | 1) * line;
}

// Kernel: the class that derives from this one. It has
//   struct Scratch : Rows with take(arena, op)   what one worker needs for one task
//   attend(tile, scratch)                        walks over the panels: scores, weights and products
// T: of queries and output. Stored: of pages. Op: the operand format of the products. A task has at most MaxRows queries of one
// frame and head, in whole blocks of BlockRows; there are `Copies` of them, which may be rotated for different pages. In a panel
// of PanelKeys columns a page's keys take whole PartKeys.
template <class Kernel, class Isa, class T, class Stored, class Op, int MaxRows, int BlockRows, int PanelKeys, int PartKeys,
          int Copies>
class AttentionRows {
 protected:
  using Vec = typename Isa::Vec;
  using Element = typename Op::Element;
  using Channel = typename Op::Channel;
  static constexpr int W = Isa::width;
  static_assert(MaxRows % BlockRows == 0 && MaxRows % W == 0, "a task is whole blocks, and whole vectors of row state");
  static constexpr int kGroup = W * Op::depth;        // columns that are narrowed together, of one page
  static constexpr int kGroups = PanelKeys / kGroup;  // of a panel
  static_assert(PanelKeys % PartKeys == 0 && PartKeys % kGroup == 0 && PartKeys % PageLayout::block_tokens == 0, "");
  static_assert(BlockRows % Op::rows == 0 && (Op::rows == 1 || Op::depth == W), "a vector of a row's channels is an element");

  struct Rows {
    Channel *queries;  // [Copies][MaxRows][query_row], rotated; rows that are multiplied together lie element by element
    float *output;     // [MaxRows][out_row]
    float *lanes;      // [MaxRows][width], sums of the weights lane by lane
    float *max;        // [MaxRows], in powers of two
    float *inverse;    // [MaxRows], 1 / sum, at the end
    // For the mass:
    float *page_lanes;  // [MaxRows][width], sums of this page's weights
    float *page_max;    // [pages][MaxRows]
    float *page_sum;    // [pages][MaxRows]

    void take(Arena &arena, const FrameAttention &op) {
      queries = arena.take<Channel>(Copies * MaxRows * query_row(op.dim));
      output = arena.take<float>(MaxRows * out_row(op.dim));
      lanes = arena.take<float>(MaxRows * W);
      max = arena.take<float>(MaxRows);
      inverse = arena.take<float>(MaxRows);
      page_lanes = arena.take<float>(op.mass ? MaxRows * W : 0);
      page_max = arena.take<float>(op.mass ? op.pages * MaxRows : 0);
      page_sum = arena.take<float>(op.mass ? op.pages * MaxRows : 0);
    }
  };

  // The queries of one task.
  struct Tile {
    int64_t frame, head, first;
    int64_t first_page;   // of the frame's batch entry, in the page table
    int64_t entry_frame;  // the frame, counted in its batch entry
    int rows;             // of queries
    int padded;           // rows up to whole blocks; those beyond `rows` are zero
  };

  struct Panel {
    Part parts[PanelKeys / PageLayout::block_tokens];
    int count;                    // of parts
    int lanes[PanelKeys / W];     // with keys, of each vector
    float bias[kGroups];          // of each group's page
    int64_t ended_page[kGroups];  // the page whose last keys are in the group, or -1
    bool is_whole;                // as many keys as it can hold, of one page that has more

    const Part *begin() const { return parts; }
    const Part *end() const { return parts + count; }
  };

  // Where a task stands in its keys.
  struct Position {
    int64_t page = 0, token = 0;
  };

 public:
  static uint64_t workspace_bytes(const FrameAttention &op) { return scratch_bytes(op) * op.workers + mass_parts_bytes(op); }

  static void run(const FrameAttention &op) { Kernel(op).run_tasks(); }

 protected:
  explicit AttentionRows(const FrameAttention &op)
      : op_(op),
        layout_(LOLRT_DEVICE_CPU, op.page_dtype, op.page_tokens, op.heads, op.dim),
        score_scale_(op.scale * kLog2E),
        query_row_(query_row(op.dim)),
        out_row_(out_row(op.dim)),
        batch_frames_(op.batch_frames()),
        blocks_((op.tokens + BlockRows - 1) / BlockRows),
        tiles_(tile_count(op)),
        mass_parts_(op.mass ? static_cast<float *>(op.workspace) : nullptr),
        scratch_bytes_(scratch_bytes(op)) {}

  static int64_t query_row(int64_t dim) { return row_elements<Channel>(dim); }
  static int64_t out_row(int64_t dim) { return row_elements<float>(dim); }

  // The next panel; false when there are no more keys.
  bool next_panel(const Tile &tile, Position &at, Panel &panel) const {
    panel.count = 0;
    for (int &lanes : panel.lanes) lanes = 0;
    for (int column = 0; column < PanelKeys && at.page < op_.pages;) {
      const float bias = page_bias(tile, at.page);
      const int64_t left = bias == -INFINITY ? 0 : op_.page_tokens - at.token;
      const bool last = left <= PanelKeys - column;
      const Part part{at.page, at.token, last ? static_cast<int>(left) : PanelKeys - column, column, at.token == 0};
      at = last ? Position{at.page + 1, 0} : Position{at.page, at.token + part.count};
      if (part.count == 0) continue;
      panel.parts[panel.count++] = part;
      for (int first = 0; first < part.count; first += W) panel.lanes[(column + first) / W] = std::min(part.count - first, W);
      for (int first = 0; first < part.count; first += kGroup, column += kGroup) {
        panel.bias[column / kGroup] = bias;
        panel.ended_page[column / kGroup] = last && first + kGroup >= part.count ? part.page : -1;
      }
      column = (column + PartKeys - 1) / PartKeys * PartKeys;
    }
    panel.is_whole = panel.lanes[PanelKeys / W - 1] == W && panel.count == 1 && panel.ended_page[kGroups - 1] < 0;
    return panel.count > 0;
  }

  const Stored *keys(const Tile &tile, const Part &part) const {
    return page(tile, part.page) + tile.head * layout_.key_head + part.token * layout_.key_row;
  }
  const Stored *values(const Tile &tile, const Part &part) const {
    return page(tile, part.page) + layout_.values + tile.head * layout_.value_head + part.token * PageLayout::block_channels;
  }
  const float *scales(const Tile &tile, int64_t page_index) const {
    return reinterpret_cast<const float *>(page(tile, page_index) + layout_.scales) + tile.head * layout_.head_scales;
  }

  // Where an element of a row begins that starts with channel c: rows that are multiplied together take turns.
  int64_t query_channel(int r, int64_t c) const {
    return r / Op::rows * Op::rows * query_row_ + r % Op::rows * Op::depth + c * Op::rows;
  }

  bool rotates() const { return op_.rotation && op_.pairs > 0; }

  void rotate_queries(const Tile &tile, int64_t page, Channel *queries) const {
    const int64_t row = ((tile.first_page + page) * batch_frames_ + tile.entry_frame) * op_.heads + tile.head;
    const float *cos_sin = op_.rotation + row * op_.pairs * 2;
    rotate_rows<Isa, T, Channel>(
        tile.rows, [&](int r) { return query(tile, r); }, cos_sin,
        [&](int r, int64_t c) { return queries + query_channel(r, c); }, 2 * op_.pairs, op_.dim);
  }

  // Scores of one row [PanelKeys] to weights, every Op::rows-th element from `weights` on, which may be the same memory; weights
  // of columns without a key are 0. raised(factor) is called when the row's maximum moves, to rescale weights of earlier panels.
  template <class Raised>
  void weigh_row(int r, const float *scores, Element *weights, const Panel &panel, const Rows &s, const Raised &raised) const {
    if (s.max[r] == -INFINITY) raise(r, scores, panel, s, raised);
    if (panel.is_whole) {
      weigh_whole(r, scores, weights, panel, s, raised);
    } else {
      weigh_parts(r, scores, weights, panel, s, raised);
    }
  }

  // Makes `max` the row's maximum. Returns what everything weighed so far has to be multiplied by; sums and output have been.
  float move_max(int r, float max, const Rows &s) const {
    const float factor = s.max[r] == -INFINITY ? 0.0f : std::exp2(s.max[r] - max);
    s.max[r] = max;
    multiply_row(s.lanes + r * W, W, factor);
    if (op_.mass) multiply_row(s.page_lanes + r * W, W, factor);
    multiply_row(s.output + r * out_row_, op_.dim, factor);
    return factor;
  }

  // The row's sum of a page's weights is complete.
  static void end_page(int r, int64_t page, const Rows &s) {
    float *lanes = s.page_lanes + r * W;
    s.page_max[page * MaxRows + r] = s.max[r];
    s.page_sum[page * MaxRows + r] = Isa::reduce_add(Isa::load(lanes));
    Isa::store(lanes, Isa::zero());
  }

  static void add(Vec vec, float *to) { Isa::store(to, Isa::add(Isa::load(to), vec)); }

  const FrameAttention &op_;
  const PageLayout layout_;
  const float score_scale_;  // of scores, in powers of two
  const int64_t query_row_;
  const int64_t out_row_;
  const int64_t batch_frames_;

 private:
  // In powers of two; -inf leaves the page out, as one that is not there.
  float page_bias(const Tile &tile, int64_t page) const {
    if (op_.page_table[tile.first_page + page] == kNoPage) return -INFINITY;
    if (!op_.bias) return 0.0f;
    const float bias = op_.bias[(tile.first_page + page) * op_.heads + tile.head];
    if (bias == -INFINITY) return bias;
    return (bias < -kMostBias ? -kMostBias : bias > kMostBias ? kMostBias : bias) * kLog2E;
  }

  const Stored *page(const Tile &tile, int64_t index) const {
    return static_cast<const Stored *>(op_.pool) + op_.page_table[tile.first_page + index] * op_.page_stride;
  }

  // A panel full of one page's keys.
  template <class Raised>
  void weigh_whole(int r, const float *scores, Element *weights, const Panel &panel, const Rows &s, const Raised &raised) const {
    const Vec c = Isa::set(score_scale_);
    typename Op::Reg rounded[kGroups];
    for (;;) {
      const Vec shift = Isa::set(panel.bias[0] - s.max[r]);
      Vec sum = Isa::zero();
#pragma GCC unroll 16
      for (int g = 0; g < kGroups; ++g) {
        Vec group[Op::depth];
#pragma GCC unroll 4
        for (int i = 0; i < Op::depth; ++i) {
          group[i] = Op::weight(Isa::multiply_add(Isa::load(scores + g * kGroup + i * W), c, shift));
        }
        rounded[g] = Op::narrow(group);
        sum = Op::add(rounded[g], sum);
      }
      if (__builtin_expect(!Isa::any_above(sum, kRescaleAbove), 1) || !raise(r, scores, panel, s, raised)) {
        add(sum, s.lanes + r * W);
        if (op_.mass) add(sum, s.page_lanes + r * W);
        break;
      }
    }
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; ++g) Op::store(weights + g * W * Op::rows, rounded[g]);
  }

  template <class Raised>
  void weigh_parts(int r, const float *scores, Element *weights, const Panel &panel, const Rows &s, const Raised &raised) const {
    const Vec c = Isa::set(score_scale_);
    typename Op::Reg rounded[kGroups];
    Vec sums[kGroups], all;
    for (;;) {
      all = Isa::zero();
#pragma GCC unroll 16
      for (int g = 0; g < kGroups; ++g) {
        const Vec shift = Isa::set(panel.bias[g] - s.max[r]);
        Vec group[Op::depth];
#pragma GCC unroll 4
        for (int i = 0; i < Op::depth; ++i) {
          const int lanes = panel.lanes[g * Op::depth + i];
          group[i] = Isa::zero();
          if (lanes == 0) continue;
          group[i] = Op::weight(Isa::multiply_add(Isa::load(scores + g * kGroup + i * W), c, shift));
          if (lanes < W) group[i] = Isa::first_n(group[i], lanes, 0.0f);
        }
        rounded[g] = Op::narrow(group);
        sums[g] = Op::add(rounded[g], Isa::zero());
        all = Isa::add(all, sums[g]);
      }
      if (!Isa::any_above(all, kRescaleAbove) || !raise(r, scores, panel, s, raised)) break;
    }
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; ++g) Op::store(weights + g * W * Op::rows, rounded[g]);
    add(all, s.lanes + r * W);
    if (op_.mass) add_to_pages(r, sums, panel, s);
  }

  void add_to_pages(int r, const Vec (&sums)[kGroups], const Panel &panel, const Rows &s) const {
    float *lanes = s.page_lanes + r * W;
    for (int g = 0; g < kGroups; ++g) {
      if (panel.lanes[g * Op::depth] == 0) continue;  // between the last keys of a page and the next block
      add(sums[g], lanes);
      if (panel.ended_page[g] >= 0) end_page(r, panel.ended_page[g], s);
    }
  }

  static void multiply_row(float *row, int64_t count, float factor) {
    for (int64_t i = 0; i < count; i += W) Isa::store(row + i, Isa::mul(Isa::set(factor), Isa::load(row + i)));
  }

  // Whether the row's maximum has moved, so that its weights have to be made anew. Large weights need not move it: where scores
  // or biases are so large that float32 does not tell the panel's highest score from the maximum, they are taken as they are.
  template <class Raised>
  bool raise(int r, const float *scores, const Panel &panel, const Rows &s, const Raised &raised) const {
    const float factor = raise_max(r, scores, panel, s);
    raised(factor);
    return factor != 1.0f;
  }

  // Makes the row's maximum that of the panel, if that is higher. Returns what everything weighed so far has to be multiplied by.
  [[gnu::noinline]] float raise_max(int r, const float *scores, const Panel &panel, const Rows &s) const {
    const Vec c = Isa::set(score_scale_);
    Vec high = Isa::set(-INFINITY);
    for (int j = 0; j < PanelKeys / W; ++j) {
      if (panel.lanes[j] == 0) continue;
      const Vec score = Isa::multiply_add(Isa::load(scores + j * W), c, Isa::set(panel.bias[j / Op::depth]));
      high = Isa::max(high, Isa::first_n(score, panel.lanes[j], -INFINITY));
    }
    const float max = std::ceil(Isa::reduce_max(high));
    return max <= s.max[r] ? 1.0f : move_max(r, max, s);
  }

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
    tile.first_page = tile.frame / batch_frames_ * op_.pages;
    tile.entry_frame = tile.frame % batch_frames_;
    // Whole blocks, spread evenly over the tiles.
    tile.first = blocks_ * index / tiles_ * BlockRows;
    const int64_t end = blocks_ * (index + 1) / tiles_ * BlockRows;
    tile.padded = static_cast<int>(end - tile.first);
    tile.rows = static_cast<int>((end < op_.tokens ? end : op_.tokens) - tile.first);

    begin(tile, scratch);
    static_cast<const Kernel &>(*this).attend(tile, scratch);
    finish(tile, scratch);
    if (op_.mass) store_mass_part(task, tile, scratch);
  }

  void begin(const Tile &tile, const Rows &s) const {
    for (int copy = 0; copy < Copies; ++copy) {
      Channel *queries = s.queries + copy * MaxRows * query_row_;
      std::memset(static_cast<void *>(queries), 0, tile.padded * query_row_ * sizeof(Channel));
      for (int r = 0; r < tile.rows; ++r) copy_query(query(tile, r), queries + query_channel(r, 0));
    }
    std::memset(s.output, 0, tile.padded * out_row_ * sizeof(float));
    std::memset(s.lanes, 0, tile.padded * W * sizeof(float));
    if (op_.mass) std::memset(s.page_lanes, 0, tile.padded * W * sizeof(float));
    for (int r = 0; r < tile.padded; ++r) s.max[r] = -INFINITY;
  }

  const T *query(const Tile &tile, int row) const { return op_.q.template row<const T>(tile.frame, tile.first + row, tile.head); }

  void copy_query(const T *from, Channel *to) const {
    if constexpr (std::is_same<T, Channel>::value) {
      const int64_t together = Op::rows == 1 ? op_.dim : Op::depth;
      for (int64_t c = 0; c < op_.dim; c += together) {
        std::memcpy(to + c * Op::rows, from + c, std::min(together, op_.dim - c) * sizeof(T));
      }
    } else {
      convert<Isa>(from, to, op_.dim);
    }
  }

  void finish(const Tile &tile, const Rows &s) const {
    const int64_t whole = op_.dim / W * W;
    for (int r = 0; r < tile.rows; ++r) {
      // A head whose pages are all left out or not there has no weights: its output is 0.
      const float sum = Isa::reduce_add(Isa::load(s.lanes + r * W));
      s.inverse[r] = sum == 0.0f ? 0.0f : 1.0f / sum;
      const Vec scale = Isa::set(s.inverse[r]);
      const float *from = s.output + r * out_row_;
      T *to = op_.out.template row<T>(tile.frame, tile.first + r, tile.head);
      for (int64_t c = 0; c < whole; c += W) Isa::store(to + c, Isa::mul(scale, Isa::load(from + c)));
      if (whole < op_.dim) Isa::store_n(to + whole, Isa::mul(scale, Isa::load(from + whole)), static_cast<int>(op_.dim - whole));
    }
  }

  void store_mass_part(int64_t task, const Tile &tile, const Rows &s) const {
    for (int64_t page = 0; page < op_.pages; ++page) {
      float part = 0.0f;
      if (page_bias(tile, page) != -INFINITY) {
        const float *max = s.page_max + page * MaxRows, *sum = s.page_sum + page * MaxRows;
        Vec parts = Isa::zero();
        for (int r = 0; r < tile.rows; r += W) {
          const int rows = tile.rows - r < W ? tile.rows - r : W;
          const Vec factor = exp2<Isa, 6>(Isa::sub(Isa::load(max + r), Isa::load(s.max + r)));
          const Vec weight = Isa::mul(Isa::mul(Isa::load(sum + r), factor), Isa::load(s.inverse + r));
          parts = Isa::add(parts, Isa::first_n(weight, rows, 0.0f));
        }
        part = Isa::reduce_add(parts);
      }
      mass_parts_[task * op_.pages + page] = part;
    }
  }

  void add_mass_parts() const {
    float *to = op_.mass;
    for (int64_t entry = 0; entry < op_.batch; ++entry) {
      for (int64_t page = 0; page < op_.pages; ++page) {
        for (int64_t frame = entry * batch_frames_; frame < (entry + 1) * batch_frames_; ++frame) {
          for (int64_t head = 0; head < op_.heads; ++head) {
            double mass = 0.0;
            for (int64_t tile = 0; tile < tiles_; ++tile) {
              mass += mass_parts_[((head * op_.frames + frame) * tiles_ + tile) * op_.pages + page];
            }
            *to++ = static_cast<float>(mass / static_cast<double>(op_.tokens));
          }
        }
      }
    }
  }

  const int64_t blocks_;     // of queries in a frame
  const int64_t tiles_;      // tasks of a frame and head
  float *const mass_parts_;  // [tasks][pages], at the workspace's start
  const uint64_t scratch_bytes_;
};

}  // namespace
}  // namespace lolrt
