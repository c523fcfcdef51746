// 2^x = 2^whole * 2^rest, the latter by a minimax polynomial on [-1/2, 1/2].
#pragma once

namespace lolrt {
namespace {

// Relative error of the polynomials before rounding: degree 3 7.5e-5 (a sixth of a bfloat16's half ulp), degree 6 1.9e-9.
template <int Degree>
struct Exp2Coefficients;
template <>
struct Exp2Coefficients<3> {
  static constexpr float value[] = {0x1.fff692p-1f, 0x1.62f31ap-1f, 0x1.f0de1ap-3f, 0x1.c3f760p-5f};
};
template <>
struct Exp2Coefficients<6> {
  static constexpr float value[] = {0x1.000000p+0f, 0x1.62e430p-1f,  0x1.ebfbdap-3f, 0x1.c6aed4p-5f,
                                    0x1.3b2dbcp-7f, 0x1.5f456ap-10f, 0x1.41d334p-13f};
};

// x <= 127; -inf gives 0, NaN gives NaN.
template <class Isa, int Degree>
inline typename Isa::Vec exp2(typename Isa::Vec x) {
  const typename Isa::Split split = Isa::split(x);
  typename Isa::Vec power = Isa::set(Exp2Coefficients<Degree>::value[Degree]);
  for (int i = Degree - 1; i >= 0; --i) {
    power = Isa::multiply_add(power, split.rest, Isa::set(Exp2Coefficients<Degree>::value[i]));
  }
  return Isa::scale(power, split.whole);
}

}  // namespace
}  // namespace lolrt
