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
//   scores = Q K^T         float32, in the scratch of the worker
//   weights = 2^(c * score + b - max)   c and b being scale and bias times log2(e); written over the scores
//   output += weights V
// `max` is a running maximum that moves only when the scores pass it by 2^8; the output and the sums are then rescaled. Where the
// weights are rounded to bfloat16 for the product with V, the sum adds the rounded ones. bfloat16 on CPUs that cannot multiply it
// is widened to float32 tile by tile.
//
// Scratch per worker: queries, scores, output, row state, and widened K and V tiles; see Scratch. Results depend on neither the
// worker nor the order of the tasks. Padding of a page is read (K's) but never used: the scores of padded tokens are replaced,
// their V is not multiplied.
#pragma once

#include "core/ops.h"
#include "core/threads.h"
#include "cpu/arena.h"
#include "cpu/exp2.h"
#include "cpu/multiply.h"
#include "cpu/rotate.h"
#include "cpu/tuning.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace lolrt {
namespace {

constexpr float kLog2E = 0x1.715476p+0f;

// f(std::integral_constant<int, n>{}) for n in 1..Max.
template <int Max, class F>
inline void with_count(int n, const F &f) {
  if constexpr (Max > 1) {
    if (n < Max) return with_count<Max - 1>(n, f);
  }
  f(std::integral_constant<int, Max>{});
}

template <class Isa, class T>
class FrameAttentionKernel {
  using Vec = typename Isa::Vec;
  using Op = typename Isa::template Operand<T>;
  using Element = typename Op::Element;
  static constexpr int W = Isa::width;
  static constexpr bool widens = std::is_same<T, Bf16>::value && Op::depth == 1;
  static_assert(kTileRows % Isa::rows == 0 && kTileRows % W == 0 && kTileKeys % (W * Op::depth) == 0, "tiles are whole blocks");

 public:
  static uint64_t workspace_bytes(const FrameAttention &op) {
    Arena arena(nullptr);
    Scratch::take(arena, op);
    return arena.bytes() * op.workers + mass_parts_bytes(op);
  }

  static void run(const FrameAttention &op) { FrameAttentionKernel(op).run_tasks(); }

 private:
  // What one worker needs for one task.
  struct Scratch {
    Element *queries;  // [kTileRows][dim / depth], rotated for the page in hand
    float *scores;     // [kTileRows][kTileKeys]; the weights are written over them
    float *output;     // [kTileRows][out_row]
    float *lanes;      // [kTileRows][width], sums of this page's weights lane by lane
    float *max;        // [kTileRows], in powers of two
    float *sum;        // [kTileRows], of all weights up to the page's start
    float *keys;       // [kTileKeys / 16][dim][16], widened
    float *values;     // [kTileKeys][dim], widened
    float *page_max;   // [pages][kTileRows], for the mass
    float *page_sum;   // [pages][kTileRows]

    static Scratch take(Arena &arena, const FrameAttention &op) {
      Scratch s;
      s.queries = arena.take<Element>(kTileRows * op.dim / Op::depth);
      s.scores = arena.take<float>(kTileRows * kTileKeys);
      s.output = arena.take<float>(kTileRows * out_row(op.dim));
      s.lanes = arena.take<float>(kTileRows * W);
      s.max = arena.take<float>(kTileRows);
      s.sum = arena.take<float>(kTileRows);
      s.keys = arena.take<float>(widens ? kTileKeys * op.dim : 0);
      s.values = arena.take<float>(widens ? kTileKeys * op.dim : 0);
      s.page_max = arena.take<float>(op.mass ? op.pages * kTileRows : 0);
      s.page_sum = arena.take<float>(op.mass ? op.pages * kTileRows : 0);
      return s;
    }
  };

  // The queries of one task.
  struct Tile {
    int64_t frame, head, first;
    int rows;    // of queries
    int padded;  // rows up to whole register blocks; those beyond `rows` are zero
  };

  explicit FrameAttentionKernel(const FrameAttention &op)
      : op_(op),
        layout_(op.dtype, op.page_tokens, op.heads, op.dim),
        elements_(op.dim / Op::depth),
        out_row_(out_row(op.dim)),
        blocks_((op.tokens + Isa::rows - 1) / Isa::rows),
        tiles_(tile_count(op)),
        score_scale_(op.scale * kLog2E),
        mass_parts_(op.mass ? static_cast<float *>(op.workspace) : nullptr) {
    Arena arena(nullptr);
    Scratch::take(arena, op);
    scratch_bytes_ = arena.bytes();
  }

  static int64_t out_row(int64_t dim) { return (dim + W - 1) / W * W; }
  static int64_t tile_count(const FrameAttention &op) { return (op.tokens + kTileRows - 1) / kTileRows; }
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
    const Scratch scratch = Scratch::take(arena, op_);
    const int64_t index = task % tiles_;
    Tile tile;
    tile.head = task / tiles_ / op_.frames;
    tile.frame = task / tiles_ % op_.frames;
    // Whole register blocks, spread evenly over the tiles.
    tile.first = blocks_ * index / tiles_ * Isa::rows;
    const int64_t end = blocks_ * (index + 1) / tiles_ * Isa::rows;
    tile.padded = static_cast<int>(end - tile.first);
    tile.rows = static_cast<int>((end < op_.tokens ? end : op_.tokens) - tile.first);

    begin(tile, scratch);
    for (int64_t page = 0; page < op_.pages; ++page) {
      const float bias = op_.bias ? op_.bias[page * op_.heads + tile.head] * kLog2E : 0.0f;
      if (bias == -INFINITY) continue;
      attend(tile, page, bias, scratch);
    }
    finish(tile, scratch);
    if (op_.mass) store_mass_part(task, tile, scratch);
  }

  void begin(const Tile &tile, const Scratch &s) const {
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

  typename Op::Channel *query_copy(int row, const Scratch &s) const {
    return reinterpret_cast<typename Op::Channel *>(s.queries + row * elements_);
  }

  void convert_query(const Tile &tile, int row, const Scratch &s) const {
    if constexpr (std::is_same<T, typename Op::Channel>::value) {
      std::memcpy(query_copy(row, s), query(tile, row), op_.dim * sizeof(T));
    } else {
      convert<Isa>(query(tile, row), query_copy(row, s), op_.dim);
    }
  }

  void attend(const Tile &tile, int64_t page, float bias, const Scratch &s) const {
    if (op_.rotation && op_.pairs > 0) {
      const float *cos_sin = op_.rotation + ((page * op_.frames + tile.frame) * op_.heads + tile.head) * op_.pairs * 2;
      for (int r = 0; r < tile.rows; ++r) rotate<Isa>(query(tile, r), cos_sin, query_copy(r, s), 2 * op_.pairs);
    }
    const T *start = static_cast<const T *>(op_.pool) + op_.page_table[page] * op_.page_stride;
    const T *keys = start + tile.head * layout_.key_head;
    const T *values = start + layout_.values + tile.head * layout_.value_head;
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
    end_page(tile, page, s);
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

  // Scores to weights, in place. Full: all kTileKeys are there.
  template <bool Full>
  void weigh(const Tile &tile, int count, float bias, const Scratch &s) const {
    const int vecs = Full ? kTileKeys / W : (count + W - 1) / W;
    const int last = count - (vecs - 1) * W;  // lanes of the last vector
    const Vec c = Isa::set(score_scale_);
    for (int r = 0; r < tile.rows; ++r) {
      float *row = s.scores + r * kTileKeys;
      const auto scores = [&](int j, float beyond) {
        const Vec vec = Isa::load(row + j * W);
        return !Full && j == vecs - 1 ? Isa::first_n(vec, last, beyond) : vec;
      };
      Vec high = scores(0, -INFINITY);
      for (int j = 1; j < vecs; ++j) high = Isa::max(high, scores(j, -INFINITY));
      if (Isa::any_above(Isa::multiply_add(high, c, Isa::set(bias - s.max[r])), kRescaleAbove)) {
        raise_max(r, Isa::reduce_max(high) * score_scale_ + bias, s);
      }
      const Vec shift = Isa::set(bias - s.max[r]);
      Vec lanes = Isa::load(s.lanes + r * W);
      auto *weights = reinterpret_cast<Element *>(row);
      for (int j = 0; j < vecs; j += Op::depth) {
        Vec group[Op::depth];
        for (int i = 0; i < Op::depth; ++i) {
          if (!Full && j + i >= vecs) {
            group[i] = Isa::zero();
            continue;
          }
          group[i] = exp2<Isa, Op::exp2_degree>(Isa::multiply_add(Isa::load(row + (j + i) * W), c, shift));
          if (!Full && j + i == vecs - 1) group[i] = Isa::first_n(group[i], last, 0.0f);
        }
        const typename Op::Reg rounded = Op::narrow(group);
        lanes = Op::multiply_add(rounded, Op::ones(), lanes);
        Op::store(weights + j / Op::depth * W, rounded);
      }
      Isa::store(s.lanes + r * W, lanes);
    }
  }

  void raise_max(int r, float max, const Scratch &s) const {
    const float factor = s.max[r] == -INFINITY ? 0.0f : std::exp2(s.max[r] - max);
    s.max[r] = max;
    s.sum[r] *= factor;
    const Vec scale = Isa::set(factor);
    Isa::store(s.lanes + r * W, Isa::mul(scale, Isa::load(s.lanes + r * W)));
    float *row = s.output + r * out_row_;
    for (int64_t c = 0; c < out_row_; c += W) Isa::store(row + c, Isa::mul(scale, Isa::load(row + c)));
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

  void end_page(const Tile &tile, int64_t page, const Scratch &s) const {
    for (int r = 0; r < tile.rows; ++r) {
      const float page_sum = Isa::reduce_add(Isa::load(s.lanes + r * W));
      Isa::store(s.lanes + r * W, Isa::zero());
      s.sum[r] += page_sum;
      if (op_.mass) {
        s.page_max[page * kTileRows + r] = s.max[r];
        s.page_sum[page * kTileRows + r] = page_sum;
      }
    }
  }

  void finish(const Tile &tile, const Scratch &s) const {
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

  void store_mass_part(int64_t task, const Tile &tile, const Scratch &s) const {
    for (int64_t page = 0; page < op_.pages; ++page) {
      float part = 0.0f;
      if (!op_.bias || op_.bias[page * op_.heads + tile.head] != -INFINITY) {
        const float *max = s.page_max + page * kTileRows, *sum = s.page_sum + page * kTileRows;
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

  const FrameAttention &op_;
  const PageLayout layout_;
  const int64_t elements_;  // of one query row
  const int64_t out_row_;
  const int64_t blocks_;  // register blocks of queries in a frame
  const int64_t tiles_;   // tasks of a frame and head
  const float score_scale_;
  float *const mass_parts_;  // [tasks][pages], at the workspace's start
  uint64_t scratch_bytes_;
};

}  // namespace
}  // namespace lolrt
