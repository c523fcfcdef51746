// The register-blocked product that both halves of attention are made of:
//   c[rows][vecs * width] = (accumulate ? c : 0) + a[rows][steps] * b[steps][vecs * width]
// with Isa::rows rows and up to Isa::vecs vectors of accumulators held in registers. a is broadcast element by element; b is read
// vector by vector, each vector from its own column of 16 lanes; one step is Op::depth k's. The steps may come in several runs,
// each with its own place in memory.
//
// The loops over rows and vectors are unrolled by pragma: only then does GCC keep `sum` in registers.
#pragma once

#include "core/page_layout.h"

#include <cstdint>

namespace lolrt {
namespace {

template <class Op>
struct Run {
  const typename Op::Element *b;
  int64_t first;  // step, as a counts them
  int64_t steps;
  bool half_step;  // one k more; its partner in b is padding and may be NaN
};

// columns: elements from a run's b to each vector.
template <class Isa, class Op, int Vecs>
[[gnu::noinline]] void multiply(const typename Op::Element *a, int64_t a_row, const Run<Op> *runs, int count,
                                const int64_t (&columns)[Vecs], bool accumulate, float *c, int64_t c_row) {
  using Vec = typename Isa::Vec;
  using Reg = typename Op::Reg;
  constexpr int rows = Isa::rows;
  constexpr int64_t b_step = PageLayout::block_tokens;
  static_assert(b_step == PageLayout::block_channels, "blocks of K and V have the same lanes");
  Vec sum[rows][Vecs];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < Vecs; ++j) sum[r][j] = accumulate ? Isa::load(c + r * c_row + j * Isa::width) : Isa::zero();
  }
  for (const Run<Op> *run = runs; run != runs + count; ++run) {
    const typename Op::Element *row_start = a + run->first, *b[Vecs];
#pragma GCC unroll 8
    for (int j = 0; j < Vecs; ++j) b[j] = run->b + columns[j];
    for (int64_t step = 0; step < run->steps; ++step) {
      Reg column[Vecs];
#pragma GCC unroll 8
      for (int j = 0; j < Vecs; ++j) column[j] = Op::load(b[j] + step * b_step);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const Reg row = Op::broadcast(row_start + r * a_row + step);
#pragma GCC unroll 8
        for (int j = 0; j < Vecs; ++j) sum[r][j] = Op::multiply_add(row, column[j], sum[r][j]);
      }
    }
    if constexpr (Op::depth == 1) continue;
    if (!run->half_step) continue;
#pragma GCC unroll 8
    for (int j = 0; j < Vecs; ++j) {
      const Reg column = Op::first_of_pair(Op::load(b[j] + run->steps * b_step));
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        sum[r][j] = Op::multiply_add(Op::broadcast(row_start + r * a_row + run->steps), column, sum[r][j]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < Vecs; ++j) Isa::store(c + r * c_row + j * Isa::width, sum[r][j]);
  }
}

}  // namespace
}  // namespace lolrt
