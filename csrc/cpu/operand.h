// What the matrix products multiply. An operand format says what one lane of one step holds: one float32 of one k, or, where the
// CPU multiplies bfloat16, the pair of k's that its instruction takes.
#pragma once

#include "cpu/bf16.h"

namespace lolrt {
namespace {

template <class Isa>
struct Fp32Operand {
  using Vec = typename Isa::Vec;
  using Element = float;  // one lane of one step
  using Channel = float;  // one k of an element
  using Reg = Vec;
  static constexpr int depth = 1;  // k's of one step
  static constexpr int exp2_degree = 6;

  static Reg load(const float *from) { return Isa::load(from); }
  static Reg load_n(const float *from, int lanes) { return Isa::load_n(from, lanes); }
  static Reg broadcast(const float *from) { return Isa::set(*from); }
  static Reg ones() { return Isa::set(1.0f); }
  static Reg first_of_pair(Reg reg) { return reg; }
  static Vec multiply_add(Reg a, Reg b, Vec sum) { return Isa::multiply_add(a, b, sum); }
  static Reg narrow(const Vec (&weights)[depth]) { return weights[0]; }
  static void store(float *to, Reg reg) { Isa::store(to, reg); }
};

}  // namespace
}  // namespace lolrt
