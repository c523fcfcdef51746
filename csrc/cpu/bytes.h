// Products of bytes, four at a time, and what else attention over pages of int8 needs of them, in plain C++. Each instruction set
// has such a struct, its `Bytes`, and may have another for those of its CPUs that have an instruction for them, its `FastBytes`,
// which says by `runs_here` whether this CPU has it.
#pragma once

#include <cstdint>
#include <cstring>

namespace lolrt {
namespace {

// Of numbers in bytes: the largest signed one, the unsigned one that stands for 0, and the least scale.
constexpr float kMostCode = 127.0f, kZeroCode = 128.0f, kLeastScale = 0x1p-100f;

template <class Isa>
struct PlainBytes {
  static constexpr int W = Isa::width;
  struct Ints {
    int32_t lane[W];
  };
  struct Unsigned {  // four to a lane, as Signed
    uint8_t byte[4 * W];
  };
  struct Signed {
    int8_t byte[4 * W];
  };

  static Unsigned load_unsigned(const uint8_t *from) { return loaded<Unsigned>(from); }
  static Signed load_signed(const int8_t *from) { return loaded<Signed>(from); }
  // The same four bytes in all lanes.
  static Unsigned broadcast_unsigned(const uint8_t *from) { return broadcast<Unsigned>(from); }
  static Signed broadcast_signed(const int8_t *from) { return broadcast<Signed>(from); }
  static Ints zero() { return {}; }
  // Adds the four products of each lane, exactly.
  static void add_dot(const Unsigned &a, const Signed &b, Ints &sums) {
    for (int i = 0; i < 4 * W; ++i) sums.lane[i / 4] += a.byte[i] * b.byte[i];
  }
  static typename Isa::Vec to_float(const Ints &ints) {
    float lanes[W];
    for (int i = 0; i < W; ++i) lanes[i] = static_cast<float>(ints.lane[i]);
    return Isa::load(lanes);
  }
  // Of numbers up to a few hundred, not negative; of NaN whatever.
  static Ints truncated(typename Isa::Vec x) {
    float lanes[W];
    Isa::store(lanes, x);
    Ints ints;
    for (int i = 0; i < W; ++i) ints.lane[i] = lanes[i] < 1024.0f ? static_cast<int32_t>(lanes[i]) : 1024;
    return ints;
  }
  static Ints add(Ints a, const Ints &b) {
    for (int i = 0; i < W; ++i) a.lane[i] += b.lane[i];
    return a;
  }
  // Those above 255 as 255.
  static void store_bytes(uint8_t *to, const Ints &ints) {
    for (int i = 0; i < W; ++i) to[i] = static_cast<uint8_t>(ints.lane[i] < 255 ? ints.lane[i] : 255);
  }

 private:
  template <class V>
  static V loaded(const void *from) {
    V bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return bytes;
  }
  template <class V>
  static V broadcast(const void *from) {
    V bytes;
    for (int i = 0; i < W; ++i) std::memcpy(bytes.byte + 4 * i, from, 4);
    return bytes;
  }
};

}  // namespace
}  // namespace lolrt
