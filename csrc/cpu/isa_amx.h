// Policy for AVX-512 with bfloat16 and the matrix tiles of AMX. What each member of the tiles does: tiles_scalar.h.
//
// The tile product takes subnormal numbers for 0, as the vector one does.
#pragma once

#include "cpu/isa_avx512bf16.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace lolrt {
namespace {

// The instructions are written out, as the compiler's intrinsics take no template arguments for tiles.
class AmxTiles {
 public:
  // A thread's tile configuration is its own, but a caller may have one in use: it gets it back. The contents of its tiles are
  // lost, as in any call.
  AmxTiles() {
    asm volatile("sttilecfg %0" : "=m"(before_));
    Configuration ours{};
    ours.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
      ours.row_bytes[tile] = 64;
      ours.rows[tile] = 16;
    }
    asm volatile("ldtilecfg %0" : : "m"(ours));
  }
  ~AmxTiles() {
    if (before_.palette == 0) {
      asm volatile("tilerelease");
    } else {
      asm volatile("ldtilecfg %0" : : "m"(before_));
    }
  }
  AmxTiles(const AmxTiles &) = delete;
  AmxTiles &operator=(const AmxTiles &) = delete;

  // The kernel asks for the tiles' register state once per process; Linux keeps it from those that do not ask.
  static bool granted() {
    constexpr long request_permission = 0x1023, tile_data = 18;
    static const bool yes = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
    return yes;
  }

  template <int Tile>
  void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
  }
  template <int Tile, class T>
  void load(const T *from, int64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0"
                 :
                 : "i"(Tile), "r"(from), "r"(stride * static_cast<int64_t>(sizeof(T)))
                 : "memory");
  }
  template <int Tile>
  void store(float *to, int64_t stride) const {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)"
                 :
                 : "i"(Tile), "r"(to), "r"(stride * static_cast<int64_t>(sizeof(float)))
                 : "memory");
  }
  template <int C, int A, int B>
  void multiply_add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  }

 private:
  struct Configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  static_assert(sizeof(Configuration) == 64, "as the processor reads it");

  Configuration before_;
};

struct AmxIsa : Avx512Bf16Isa {
  static constexpr const char *name = "amx";

  template <class T>
  using Operand = Avx512Bf16Isa::Operand<T>;
  using Tiles = AmxTiles;
  using TileOperand = Operand<Bf16>;

  static bool runs_here() { return Avx512Bf16Isa::runs_here() && has_tiles() && AmxTiles::granted(); }

 private:
  // Asked of the processor: __builtin_cpu_supports does not know the names of AMX in Clang 14.
  static bool has_tiles() {
    constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & amx_bf16) && (d & amx_tile);
  }
};

}  // namespace
}  // namespace lolrt
