// Products of bytes: the struct of each instruction set against plain C++, bit for bit.
#include "check.h"

#include "cpu/bytes.h"
#if defined(LOLRT_X86)
#  include "cpu/isa_avx2.h"
#  include "cpu/isa_avx512.h"
#else
#  include "cpu/isa_neonbf16.h"
#endif

#include <algorithm>
#include <random>

namespace lolrt {
namespace {

constexpr int kMostWidth = 16, kSteps = 100;  // the sums stay below 2^24, so that float32 holds them

template <class Isa>
struct Lanes {
  float lane[Isa::width];
  explicit Lanes(typename Isa::Vec vec) { Isa::store(lane, vec); }
  bool operator==(const Lanes &other) const { return std::equal(lane, lane + Isa::width, other.lane); }
};

// Half of the bytes are the least or the largest.
struct Bytes {
  uint8_t bytes[4 * kMostWidth];
  explicit Bytes(std::mt19937 &random) {
    const uint8_t ends[] = {0, 127, 128, 255};
    for (uint8_t &byte : bytes) byte = random() % 2 ? ends[random() % 4] : static_cast<uint8_t>(random());
  }
  const uint8_t *as_unsigned() const { return bytes; }
  const int8_t *as_signed() const { return reinterpret_cast<const int8_t *>(bytes); }
};

template <class Isa, class B>
typename Isa::Vec products(uint32_t seed, int kind) {
  std::mt19937 random(seed);
  typename B::Ints sums = B::zero();
  for (int step = 0; step < kSteps; ++step) {
    const Bytes a(random), b(random);
    switch (kind) {
      case 0:
        B::add_dot(B::load_unsigned(a.as_unsigned()), B::load_signed(b.as_signed()), sums);
        break;
      case 1:
        B::add_dot(B::broadcast_unsigned(a.as_unsigned()), B::load_signed(b.as_signed()), sums);
        break;
      default:
        B::add_dot(B::load_unsigned(a.as_unsigned()), B::broadcast_signed(b.as_signed()), sums);
    }
  }
  return B::to_float(sums);
}

template <class Isa, class B>
void test(const char *name) {
  using Plain = PlainBytes<Isa>;
  for (uint32_t seed = 0; seed < 300; ++seed) {
    for (int kind = 0; kind < 3; ++kind) {
      CHECK((Lanes<Isa>(products<Isa, B>(seed, kind)) == Lanes<Isa>(products<Isa, Plain>(seed, kind))));
    }
    std::mt19937 random(seed);
    float numbers[2][Isa::width];
    for (auto &row : numbers) {
      for (float &number : row) number = static_cast<float>(random() % 30000) / 100;  // also above 255
    }
    const auto first = Isa::load(numbers[0]), second = Isa::load(numbers[1]);
    const auto sum = B::add(B::truncated(first), B::truncated(second));
    const auto plain = Plain::add(Plain::truncated(first), Plain::truncated(second));
    CHECK((Lanes<Isa>(B::to_float(sum)) == Lanes<Isa>(Plain::to_float(plain))));
    uint8_t stored[2][Isa::width];
    B::store_bytes(stored[0], sum);
    Plain::store_bytes(stored[1], plain);
    CHECK(std::equal(stored[0], stored[0] + Isa::width, stored[1]));
  }
  std::printf("%s: ok\n", name);
}

}  // namespace
}  // namespace lolrt

int main() {
  using namespace lolrt;
#if defined(LOLRT_X86)
  if (!Avx512Isa::runs_here() || !Avx512VnniBytes::runs_here()) {
    std::printf("skipped: this test is compiled for AVX-512 with VNNI\n");
    return 0;
  }
  test<Avx2Isa, Avx2Bytes>("AVX2");
  test<Avx512Isa, Avx512Bytes>("AVX-512");
  test<Avx512Isa, Avx512VnniBytes>("AVX512-VNNI");
  // The same instruction, encoded as one of AVX-512: few CPUs have both encodings.
  test<Avx2Isa, Avx2VnniBytes>("AVX-VNNI");
#else
  test<NeonIsa, NeonBytes>("NEON");
  if (NeonBf16Isa::runs_here()) test<NeonBf16Isa, NeonDotBytes>("I8MM");
#endif
  return failures != 0;
}
