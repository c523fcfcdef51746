// Matrix tiles in plain C++: what the tile kernels do, runnable on every CPU, and the description of what a tile policy is.
//
// A policy is an object that a kernel holds while it uses tiles; it has eight of them, named by template arguments, of 16 rows of
// 64 bytes. Strides are in elements of what is loaded or stored.
#pragma once

#include "cpu/bf16.h"

#include <cstdint>
#include <cstring>

namespace lolrt {
namespace {

class ScalarTiles {
 public:
  template <int Tile>
  void zero() {
    std::memset(tiles_[Tile], 0, sizeof tiles_[Tile]);
  }
  template <int Tile, class T>
  void load(const T *from, int64_t stride) {
    for (int r = 0; r < 16; ++r) std::memcpy(tiles_[Tile][r], from + r * stride, sizeof tiles_[Tile][r]);
  }
  template <int Tile>
  void store(float *to, int64_t stride) const {
    for (int r = 0; r < 16; ++r) std::memcpy(to + r * stride, tiles_[Tile][r], sizeof tiles_[Tile][r]);
  }
  // C [16][16] float32 += A [16][32] B [32][16] of bfloat16; B's rows come in pairs, [16][16][2].
  template <int C, int A, int B>
  void multiply_add() {
    float a[16][32], b[32][16], c[16][16];
    for (int r = 0; r < 16; ++r) {
      for (int i = 0; i < 16; ++i) {
        a[r][2 * i] = first(tiles_[A][r][i]);
        a[r][2 * i + 1] = second(tiles_[A][r][i]);
        b[2 * r][i] = first(tiles_[B][r][i]);
        b[2 * r + 1][i] = second(tiles_[B][r][i]);
      }
    }
    std::memcpy(c, tiles_[C], sizeof c);
    for (int r = 0; r < 16; ++r) {
      for (int k = 0; k < 32; ++k) {
        for (int j = 0; j < 16; ++j) c[r][j] += a[r][k] * b[k][j];
      }
    }
    std::memcpy(tiles_[C], c, sizeof c);
  }

 private:
  static float number(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  static float first(uint32_t pair) { return number(pair << 16); }
  static float second(uint32_t pair) { return number(pair & 0xffff0000u); }

  uint32_t tiles_[8][16][16];
};

}  // namespace
}  // namespace lolrt
