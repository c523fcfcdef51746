// The register-blocked product that both halves of attention are made of:
//   c[rows][vecs * width] = (accumulate ? c : 0) + a[rows][steps] * b[steps][vecs * width]
// with Isa::rows rows and up to Isa::vecs vectors of accumulators held in registers. a is broadcast element by element, Op::rows
// rows at a time, whose elements of a step lie side by side; b is read vector by vector, each vector from its own column of 16
// lanes; one step is Op::depth k's. The steps may come in several runs, each with its own place in memory.
//
// The loops over rows and vectors are unrolled by pragma: only then does GCC keep `sums` in registers.
#pragma once

#include "core/page_layout.h"

#include <cstdint>
#include <type_traits>

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

// f(columns, first vector) for `vecs` vectors, in steps of what a register block takes; blocks of 16 lanes are `block` elements
// apart. columns: of so many vectors, a constant.
template <class Isa, class F>
inline void for_columns(int vecs, int64_t block, const F &f) {
  constexpr int W = Isa::width, lanes = PageLayout::block_tokens;
  for (int vec = 0; vec < vecs; vec += Isa::vecs) {
    with_count<Isa::vecs>(vecs - vec, [&](auto count_constant) {
      constexpr int n = decltype(count_constant)::value;
      int64_t columns[n];
      for (int j = 0; j < n; ++j) columns[j] = (vec + j) * W / lanes * block + (vec + j) * W % lanes;
      f(columns, vec);
    });
  }
}

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
  using Reg = typename Op::Reg;
  constexpr int groups = Isa::rows / Op::rows;
  const int64_t a_group = Op::rows * a_row, c_group = Op::rows * c_row;
  constexpr int64_t b_step = PageLayout::block_tokens;
  static_assert(b_step == PageLayout::block_channels, "blocks of K and V have the same lanes");
  typename Op::Sums sums[groups][Vecs];
#pragma GCC unroll 16
  for (int g = 0; g < groups; ++g) {
#pragma GCC unroll 8
    for (int j = 0; j < Vecs; ++j) {
      sums[g][j] = accumulate ? Op::load_sums(c + g * c_group + j * Isa::width, c_row) : Op::zero_sums();
    }
  }
  for (const Run<Op> *run = runs; run != runs + count; ++run) {
    const typename Op::Element *start = a + run->first * Op::rows, *b[Vecs];
#pragma GCC unroll 8
    for (int j = 0; j < Vecs; ++j) b[j] = run->b + columns[j];
    for (int64_t step = 0; step < run->steps; ++step) {
      Reg column[Vecs];
#pragma GCC unroll 8
      for (int j = 0; j < Vecs; ++j) column[j] = Op::load(b[j] + step * b_step);
#pragma GCC unroll 16
      for (int g = 0; g < groups; ++g) {
        const auto row = Op::broadcast(start + g * a_group + step * Op::rows);
#pragma GCC unroll 8
        for (int j = 0; j < Vecs; ++j) sums[g][j] = Op::multiply_add(row, column[j], sums[g][j]);
      }
    }
    if constexpr (Op::depth == 2) {
      if (!run->half_step) continue;
#pragma GCC unroll 8
      for (int j = 0; j < Vecs; ++j) {
        const Reg column = Op::first_of_pair(Op::load(b[j] + run->steps * b_step));
#pragma GCC unroll 16
        for (int g = 0; g < groups; ++g) {
          sums[g][j] = Op::multiply_add(Op::broadcast(start + g * a_group + run->steps), column, sums[g][j]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int g = 0; g < groups; ++g) {
#pragma GCC unroll 8
    for (int j = 0; j < Vecs; ++j) Op::store_sums(c + g * c_group + j * Isa::width, c_row, sums[g][j]);
  }
}

}  // namespace
}  // namespace lolrt
