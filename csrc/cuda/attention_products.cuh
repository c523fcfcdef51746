// The two products of a tile of frame_attention.cuh: queries with keys, weights with values. A warp has 32 rows, two halves
// of 16.
//
// In shared memory a row of queries or of a tile is a line of 16-byte chunks, which are permuted by the row's lowest three bits,
// so that 8 rows of one 8 x 8 matrix lie in different banks.
//
// Keys and values of 8 bits are made wider in registers, each where a product wants it: in the order in which a page holds the
// channels (core/page_layout.h), what ldmatrix gives a lane are its own elements of two products.
#pragma once

#include <device/matrix.cuh>
#include <device/threads.cuh>

namespace lolrt::cuda {

constexpr int kHalves = 2;
constexpr int kAttentionWarpRows = kHalves * 16;

template <int RowBytes>
__device__ __forceinline__ int chunk_at(int row, int chunk) {
  return row * RowBytes + ((chunk ^ (row & 7)) << 4);
}

// Of pages of 16-bit elements.
template <class Element, class Stored, int Dim>
struct AttentionProducts {
  static constexpr int kQueryBytes = Dim * 2, kRowBytes = Dim * sizeof(Stored), kChunks = Dim / 8;

  // What elements of a page are multiplied by when they are made wider; here they are as they are.
  struct Factors {};

  // The warp's rows with the first 16 * Groups keys. A lane's matrices of a: rows 0-7 and 8-15 of one chunk, then of the next.
  // Those of b: two chunks of 8 keys, then of the next 8. A step of two chunks changes bits of the chunk's number that the first
  // two do not have.
  template <int Groups>
  __device__ __forceinline__ static void score(float (&scores)[kHalves][2 * Groups][4], const unsigned char *queries,
                                               const unsigned char *keys, int warp_row, int lane, Factors) {
    const int query_chunk = lane / 16, key_chunk = lane / 8 % 2;
    const int query_row = warp_row + lane % 16, key_row = lane % 8 + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < kChunks; k += 2) {
      uint32_t a[kHalves][4];
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        load_matrices(a[half], queries + (chunk_at<kQueryBytes>(query_row, query_chunk) ^ (k << 4)) + half * 16 * kQueryBytes);
      }
#pragma unroll
      for (int n = 0; n < 2 * Groups; n += 2) {
        uint32_t b[4];
        load_matrices(b, keys + (chunk_at<kRowBytes>(key_row, key_chunk) ^ (k << 4)) + n * 8 * kRowBytes);
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          multiply_add<Element>(scores[half][n], a[half], b[0], b[1]);
          multiply_add<Element>(scores[half][n + 1], a[half], b[2], b[3]);
        }
      }
    }
  }

  template <int Groups>
  __device__ __forceinline__ static void add_values(float (&out)[kHalves][kChunks][4],
                                                    const uint32_t (&weights)[kHalves][Groups][4], const unsigned char *values,
                                                    int lane, Factors) {
    const int row = lane % 16, chunk = lane / 16;
#pragma unroll
    for (int k = 0; k < Groups; ++k) {
#pragma unroll
      for (int n = 0; n < kChunks; n += 2) {
        uint32_t b[4];
        load_matrices_transposed(b, values + (chunk_at<kRowBytes>(row, chunk) ^ (n << 4)) + k * 16 * kRowBytes);
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          multiply_add<Element>(out[half][n], weights[half][k], b[0], b[1]);
          multiply_add<Element>(out[half][n + 1], weights[half][k], b[2], b[3]);
        }
      }
    }
  }
};

// Bytes First and Second of a word, two numbers of e4m3, as a pair of bfloat16, times `factor`'s pair. Their bits without the
// factor are 2^-120 of the numbers, for subnormal ones as well.
template <int First, int Second>
__device__ __forceinline__ uint32_t widen(uint32_t word, uint32_t factor) {
  return multiply_pairs<Bf16>(sign_extended_bytes<First, Second>(word) << 4 & 0x87f087f0u, factor);
}

template <int Dim>
struct AttentionProducts<Bf16, Fp8, Dim> {
  static constexpr int kQueryBytes = Dim * 2, kRowBytes = Dim, kChunks = Dim / 8;

  // 2^120 times the page's scales, in pairs.
  struct Factors {
    uint32_t keys, values;
  };

  __device__ __forceinline__ static Factors factors(const float *scales) {
    const float keys = scales[0] * 0x1p120f, values = scales[1] * 0x1p120f;
    return {pack<Bf16>(keys, keys), pack<Bf16>(values, values)};
  }

  // A chunk of keys is 16 channels, a whole step. A lane's matrices of b: two chunks of 8 keys, then of the next 8.
  template <int Groups>
  __device__ __forceinline__ static void score(float (&scores)[kHalves][2 * Groups][4], const unsigned char *queries,
                                               const unsigned char *keys, int warp_row, int lane, Factors factors) {
    const int query_chunk = lane / 16, key_chunk = lane / 8 % 2;
    const int query_row = warp_row + lane % 16, key_row = lane % 8 + lane / 16 * 8;
#pragma unroll
    for (int pair = 0; pair < kChunks / 4; ++pair) {
      uint32_t words[Groups][4];
#pragma unroll
      for (int group = 0; group < Groups; ++group) {
        load_matrices(words[group], keys + (chunk_at<kRowBytes>(key_row, key_chunk) ^ (pair << 5)) + group * 16 * kRowBytes);
      }
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        uint32_t a[kHalves][4];
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          load_matrices(a[half], queries + (chunk_at<kQueryBytes>(query_row, query_chunk) ^ ((pair * 2 + step) << 5)) +
                                     half * 16 * kQueryBytes);
        }
#pragma unroll
        for (int n = 0; n < 2 * Groups; ++n) {
          const uint32_t word = words[n / 2][n % 2 * 2 + step];
          const uint32_t b0 = widen<0, 1>(word, factors.keys), b1 = widen<2, 3>(word, factors.keys);
#pragma unroll
          for (int half = 0; half < kHalves; ++half) multiply_add<Bf16>(scores[half][n], a[half], b0, b1);
        }
      }
    }
  }

  // A lane's matrices of b: 16 keys of one chunk, then of the next.
  template <int Groups>
  __device__ __forceinline__ static void add_values(float (&out)[kHalves][kChunks][4],
                                                    const uint32_t (&weights)[kHalves][Groups][4], const unsigned char *values,
                                                    int lane, Factors factors) {
    const int row = lane % 16, chunk = lane / 16;
#pragma unroll
    for (int k = 0; k < Groups; ++k) {
#pragma unroll
      for (int pair = 0; pair < kChunks / 4; ++pair) {
        uint32_t words[4];
        load_matrices_transposed(words, values + (chunk_at<kRowBytes>(row, chunk) ^ (pair << 5)) + k * 16 * kRowBytes);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const uint32_t low0 = widen<0, 2>(words[2 * c], factors.values), low1 = widen<0, 2>(words[2 * c + 1], factors.values);
          const uint32_t high0 = widen<1, 3>(words[2 * c], factors.values), high1 = widen<1, 3>(words[2 * c + 1], factors.values);
#pragma unroll
          for (int half = 0; half < kHalves; ++half) {
            multiply_add<Bf16>(out[half][4 * pair + 2 * c], weights[half][k], low0, low1);
            multiply_add<Bf16>(out[half][4 * pair + 2 * c + 1], weights[half][k], high0, high1);
          }
        }
      }
    }
  }
};

}  // namespace lolrt::cuda
