// 2^x = 2^whole * 2^rest, the latter by a minimax polynomial on [0, 1].
#pragma once

namespace lolrt {
namespace {

// Relative error of the polynomials before rounding: degree 2 1.8e-3 (less than a byte's half step of 255), degree 3 7.5e-5 (a
// sixth of a bfloat16's half ulp), degree 6 1.9e-9.
template <int Degree>
struct Exp2Coefficients;
template <>
struct Exp2Coefficients<2> {
  static constexpr float value[] = {0x1.007108p+0f, 0x1.50b5b4p-1f, 0x1.594830p-2f};
};
template <>
struct Exp2Coefficients<3> {
  static constexpr float value[] = {0x1.fff632p-1f, 0x1.64444cp-1f, 0x1.cefc4cp-3f, 0x1.3f96a4p-4f};
};
template <>
struct Exp2Coefficients<6> {
  static constexpr float value[] = {0x1.000000p+0f, 0x1.62e42ap-1f,  0x1.ebfd9ep-3f, 0x1.c68500p-5f,
                                    0x1.3d2800p-7f, 0x1.461954p-10f, 0x1.c72118p-13f};
};

// -inf gives 0, NaN gives NaN, and all from 128 on infinity. `added` is added to 2^rest, a number from 1 to 2.
template <class Isa, int Degree>
inline typename Isa::Vec exp2(typename Isa::Vec x, float added = 0.0f) {
  const typename Isa::Split split = Isa::split(x);
  typename Isa::Vec power = Isa::set(Exp2Coefficients<Degree>::value[Degree]);
  for (int i = Degree - 1; i > 0; --i) {
    power = Isa::multiply_add(power, split.rest, Isa::set(Exp2Coefficients<Degree>::value[i]));
  }
  power = Isa::multiply_add(power, split.rest, Isa::set(Exp2Coefficients<Degree>::value[0] + added));
  return Isa::scale(power, split.whole);
}

}  // namespace
}  // namespace lolrt
