// wgmma, sm_90a: products of a warpgroup's 64 rows with a matrix in shared memory, which run beside its threads.
//
// Thread 32 w + l of a warpgroup (a multiple of 128 and on) holds, with g = l / 4 and t = 2 (l % 4), rows 16 w + g and 16 w + g +
// 8:
//   a, 64 x 16   the words of matrix.cuh's a
//   d, 64 x N    for each 8 columns, columns t and t + 1 of the first row, then of the second
// From its product on until it has been waited for nobody may touch d, a, or b in shared memory. All threads take part in each
// call.
#pragma once

#include <device/element.cuh>

#include <cstdint>

namespace lolrt::cuda {

constexpr int kWarpgroupThreads = 128;

// Moves registers between warpgroups: the kernel began with as many for each thread as its launch bounds allow.
template <int Registers>
__device__ __forceinline__ void give_registers_back() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Registers));
}
template <int Registers>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Registers));
}

// Before the first product, and before one whose d or a other instructions have written since the last.
__device__ __forceinline__ void fence_products() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }

__device__ __forceinline__ void commit_product_group() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }

// Waits until no more than the `Pending` youngest groups are under way.
template <int Pending>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(Pending) : "memory");
}

// The compiler moves no use of the registers across: they are written by nobody that it sees.
template <int Count>
__device__ __forceinline__ void pin(float (&registers)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

#define LOLRT_D8(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define LOLRT_D56 LOLRT_D8(0), LOLRT_D8(8), LOLRT_D8(16), LOLRT_D8(24), LOLRT_D8(32), LOLRT_D8(40), LOLRT_D8(48)
#define LOLRT_NAMES56                                                                                    \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
  "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55"

// d = a b, or d += a b. b is 16 x 112, its columns are rows in memory; `b` is its matrix descriptor.
template <class Element>
__device__ __forceinline__ void multiply_rows(float (&d)[56], const uint32_t (&a)[4], uint64_t b, bool add);

// d += a b. b is 16 x 128, with its rows in memory.
template <class Element>
__device__ __forceinline__ void multiply_add_columns(float (&d)[64], const uint32_t (&a)[4], uint64_t b);

#define LOLRT_PRODUCTS(Element, type)                                                                                    \
  template <>                                                                                                            \
  __device__ __forceinline__ void multiply_rows<Element>(float (&d)[56], const uint32_t (&a)[4], uint64_t b, bool add) { \
    asm volatile(                                                                                                        \
        "{\n"                                                                                                            \
        "  .reg .pred add;\n"                                                                                            \
        "  setp.ne.b32 add, %61, 0;\n"                                                                                   \
        "  wgmma.mma_async.sync.aligned.m64n112k16.f32." type "." type " {" LOLRT_NAMES56                                \
        "}, {%56, %57, %58, %59}, %60, add, 1, 1, 0;\n"                                                                  \
        "}\n"                                                                                                            \
        : LOLRT_D56                                                                                                      \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add))                                 \
        : "memory");                                                                                                     \
  }                                                                                                                      \
  template <>                                                                                                            \
  __device__ __forceinline__ void multiply_add_columns<Element>(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {    \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" LOLRT_NAMES56                         \
                 ", %56, %57, %58, %59, %60, %61, %62, %63}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"                   \
                 : LOLRT_D56, LOLRT_D8(56)                                                                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)                                                    \
                 : "memory");                                                                                            \
  }

LOLRT_PRODUCTS(Bf16, "bf16")
LOLRT_PRODUCTS(Fp16, "f16")

#undef LOLRT_PRODUCTS
#undef LOLRT_NAMES56
#undef LOLRT_D56
#undef LOLRT_D8

}  // namespace lolrt::cuda
