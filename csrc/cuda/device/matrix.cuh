// Tensor cores of sm_80 and later: 8 x 8 matrices of 16-bit elements from shared memory, and the product of 16 x 16 by 16 x 8.
//
// Lane l of a warp holds, with g = l / 4 and t = 2 (l % 4):
//   an 8 x 8 matrix  elements t and t + 1 of row g, in one word; transposed: elements g of rows t and t + 1
//   a, 16 x 16       matrices of rows 0-7 and 8-15 of columns 0-7, then of columns 8-15
//   b, 16 x 8        rows t and t + 1 of column g, then rows t + 8 and t + 9
//   d, 16 x 8        columns t and t + 1 of row g, then of row g + 8, in float32
#pragma once

#include <device/async_copy.cuh>
#include <device/element.cuh>

namespace lolrt::cuda {

// Four matrices; lane 8 i + j gives the address of row j of matrix i, aligned to its 16 bytes. All lanes take part.
__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&words)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += a b. All lanes take part.
template <class Element>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void multiply_add<Bf16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void multiply_add<Fp16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace lolrt::cuda
