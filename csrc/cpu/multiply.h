// The register-blocked product that both halves of attention are made of:
//   c[rows][vecs * width] = (accumulate ? c : 0) + a[rows][steps] * b[steps][vecs * width]
// with Isa::rows rows and up to Isa::vecs vectors of accumulators held in registers. a is broadcast element by element; b is read
// vector by vector, each vector from its own column pointer; one step is Op::depth k's.
//
// The loops over rows and vectors are unrolled by pragma: only then does GCC keep `sum` in registers.
#pragma once

#include <cstdint>

namespace lolrt {
namespace {

// Lanes of the last vector of b that may be read; 0 means all.
struct Tail {
  int lanes = 0;
};

template <class Isa, class Op, int Vecs, bool HasTail>
inline void multiply(const typename Op::Element *a, int64_t a_row, const typename Op::Element *const (&b)[Vecs], int64_t b_step,
                     int64_t steps, bool half_step, Tail tail, bool accumulate, float *c, int64_t c_row) {
  using Vec = typename Isa::Vec;
  using Reg = typename Op::Reg;
  constexpr int rows = Isa::rows;
  Vec sum[rows][Vecs];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < Vecs; ++j) sum[r][j] = accumulate ? Isa::load(c + r * c_row + j * Isa::width) : Isa::zero();
  }
  const auto load = [&](int j, int64_t step) {
    const auto *from = b[j] + step * b_step;
    return HasTail && j == Vecs - 1 ? Op::load_n(from, tail.lanes) : Op::load(from);
  };
  for (int64_t step = 0; step < steps; ++step) {
    Reg column[Vecs];
#pragma GCC unroll 8
    for (int j = 0; j < Vecs; ++j) column[j] = load(j, step);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Reg row = Op::broadcast(a + r * a_row + step);
#pragma GCC unroll 8
      for (int j = 0; j < Vecs; ++j) sum[r][j] = Op::multiply_add(row, column[j], sum[r][j]);
    }
  }
  if (half_step) {  // the last pair has one k only; its partner is padding and may be NaN
#pragma GCC unroll 8
    for (int j = 0; j < Vecs; ++j) {
      const Reg column = Op::first_of_pair(load(j, steps));
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        sum[r][j] = Op::multiply_add(Op::broadcast(a + r * a_row + steps), column, sum[r][j]);
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
