// What the matrix products multiply. An operand format says what one lane of one step holds: one float32 of one k, or, where the
// CPU multiplies bfloat16, the pair of k's that its instruction takes.
#pragma once

#include "cpu/bf16.h"
#include "cpu/exp2.h"

namespace lolrt {
namespace {

template <class Isa>
struct Fp32Operand {
  using Vec = typename Isa::Vec;
  using Element = float;  // one lane of one step
  using Channel = float;  // one k of an element
  using Reg = Vec;
  static constexpr int depth = 1;  // k's of one step

  static Reg load(const float *from) { return Isa::load(from); }
  static Reg broadcast(const float *from) { return Isa::set(*from); }
  static Reg ones() { return Isa::set(1.0f); }
  static Reg first_of_pair(Reg reg) { return reg; }
  static Vec multiply_add(Reg a, Reg b, Vec sum) { return Isa::multiply_add(a, b, sum); }
  // 2^x as `narrow` wants it.
  static Vec weight(Vec x) { return exp2<Isa, 6>(x); }
  static Reg narrow(const Vec (&weights)[depth]) { return weights[0]; }
  static void store(float *to, Reg reg) { Isa::store(to, reg); }
};

}  // namespace
}  // namespace lolrt
