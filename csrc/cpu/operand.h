// What the matrix products multiply: a, whose numbers are broadcast, by b, whose lanes lie side by side. An operand format says
// what one lane of one step holds: one float32 of one k, or, where the CPU multiplies bfloat16, the pair or the four k's that its
// instruction takes; and how many rows of a the instruction takes at once.
#pragma once

#include "core/page_layout.h"
#include "cpu/bf16.h"
#include "cpu/exp2.h"

#include <cstdint>

namespace lolrt {
namespace {

// Sums of formats whose products take one row of a.
template <class Isa>
struct RowSums {
  using Vec = typename Isa::Vec;
  using Sums = Vec;               // of `rows` rows and `width` lanes
  static constexpr int rows = 1;  // of a; elements of one step lie side by side

  static Sums zero_sums() { return Isa::zero(); }
  // `row`: floats from one row to the next.
  static Sums load_sums(const float *from, int64_t) { return Isa::load(from); }
  static void store_sums(float *to, int64_t, Sums sums) { Isa::store(to, sums); }
};

template <class Isa>
struct Fp32Operand : RowSums<Isa> {
  using Vec = typename Isa::Vec;
  using Element = float;  // one lane of one step
  using Channel = float;  // one k of an element
  using Reg = Vec;
  static constexpr int depth = 1;  // k's of one step

  static Reg load(const float *from) { return Isa::load(from); }
  static float broadcast(const float *from) { return *from; }
  static Vec multiply_add(float a, Reg b, Vec sums) { return Isa::multiply_add(a, b, sums); }

  // `count` k's of the 16 lanes of a page's block, [count / 2][16][2], to elements [count / depth][16]. The page's padding may be
  // read; where depth is more than 1, elements are filled up with zeros.
  static void repack(const Bf16 *pairs, int64_t count, float *to) {
    constexpr int64_t lanes = PageLayout::block_tokens;
    for (; count > 0; count -= 2, pairs += 2 * lanes, to += 2 * lanes) {
      for (int64_t lane = 0; lane < lanes; lane += Isa::width) {
        const typename Isa::Pairs x = Isa::load_pairs(pairs + 2 * lane);
        Isa::store(to + lane, x.first);
        Isa::store(to + lanes + lane, x.second);
      }
    }
  }

  // 2^x as `narrow` wants it.
  static Vec weight(Vec x) { return exp2<Isa, 6>(x); }
  // Weights of one row, width * depth of them.
  static Reg narrow(const Vec (&weights)[depth]) { return weights[0]; }
  // Lane by lane, in any order.
  static Vec add(Reg weights, Vec sum) { return Isa::add(weights, sum); }
  // To every `rows`th element.
  static void store(float *to, Reg weights) { Isa::store(to, weights); }
};

}  // namespace
}  // namespace lolrt
