// Where K and V of a head lie in a page; see lolrt_page_elements in lolrt.h for the picture.
#pragma once

#include "core/tensor.h"

namespace lolrt {

struct PageLayout {
  // Tokens of one K block, and channels of one V block: the lanes of a 512-bit register. With blocks, all reads of K and V are
  // sequential. Rows of a whole head would often be a power of two apart, and compete for a few sets of L1.
  static constexpr int64_t block_tokens = 16, block_channels = 16;
  static constexpr int64_t part_bytes = 64;  // K and V parts start on a cache line
  // far beyond any model; these limits keep products of sizes from overflowing
  static constexpr int64_t max_tokens = 1 << 24, max_heads = 4096;
  static constexpr int64_t max_dim = 256;

  int64_t tokens, dim, heads;
  int64_t key_row;      // elements of a token's K, filled up to whole words
  int64_t key_head;     // elements from one head's K to the next
  int64_t value_block;  // elements from one V block to the next
  int64_t value_head;   // elements from one head's V to the next
  int64_t values;       // elements from the page's start to its V part
  int64_t scales;       // and to its scales, if it has any
  int64_t head_scales;  // floats of a head's scales
  int64_t elements;     // of the whole page

  PageLayout(int32_t device_type, DType dtype, int64_t tokens, int64_t heads, int64_t dim)
      : tokens(tokens), dim(dim), heads(heads) {
    const int64_t align = part_bytes / element_bytes(dtype);
    const auto round_up = [](int64_t value, int64_t to) { return (value + to - 1) / to * to; };
    const bool packed = device_type == LOLRT_DEVICE_CPU;  // on CUDA a page holds its rows and nothing else
    const int64_t channels = packed ? block_channels : dim;
    const int64_t depth = !packed ? 1 : dtype == DType::bfloat16 ? 2 : dtype == DType::int8 ? 4 : 1;  // elements of a word
    key_row = round_up(dim, depth);
    key_head = round_up(tokens, packed ? block_tokens : 1) * key_row;
    value_block = round_up(tokens, depth) * channels;
    value_head = round_up(dim, channels) / channels * value_block;
    values = round_up(heads * key_head, align);
    scales = values + round_up(heads * value_head, align);
    head_scales = dtype == DType::float8_e4m3fn ? 2 : dtype == DType::int8 ? 3 * dim : 0;
    elements = scales + round_up(heads * head_scales * static_cast<int64_t>(sizeof(float)), align);
  }
};

}  // namespace lolrt
