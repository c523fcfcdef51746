// Sizes that decide the kernels' speed, each with its reason.
#pragma once

namespace lolrt {

// frame_attention: queries of one task. A multiple of every policy's register rows (4, 6, 12). At dim 128 the tile's rotated
// queries (24 KB in bf16), scores (24 KB) and output (48 KB) stay in a 1-2 MB L2 beside a K and a V tile of 16 KB each in L1.
constexpr int kTileRows = 96;
// frame_attention: keys of a panel, whose weights are made at once in so many registers. The output is loaded and stored once for
// its products: with 128 keys in place of 64, bf16 attention on AVX-512 gained 4 % (2026-11-25, Zen 4).
constexpr int kPanelVectors = 8;
// The same, where vectors are short: as many keys as 16 vectors of four floats or of eight bfloat16 hold, half of NEON's
// registers.
constexpr int kLeastPanelKeys = 64;
// frame_attention on matrix tiles: queries of one task. K and V are read once for all of them, from the third cache or from
// memory; at dim 128 their rotated copies (160 KB each), output (288 KB) and weights (288 KB) stay in a 2 MB L2 beside a span of
// K and V (128 KB).
constexpr int kTileTaskRows = 512;
// The same: keys of a panel, two tiles' depth.
constexpr int kTilePanelKeys = 64;
// The same: keys that are weighed before they meet V. An output tile is loaded and stored once for its eight products.
constexpr int kTileSpanKeys = 256;
// frame_attention: the running maximum follows the scores when a lane's weights of a panel add up to more than this. Weights of
// that size lose no accuracy, and the output is almost never rescaled.
constexpr float kRescaleAbove = 256.0f;
// frame_attention over pages of int8: keys of a panel. Its output is loaded, scaled and stored once.
constexpr int kInt8PanelKeys = 512;
// kv_write: a call that writes more than this writes past the caches, which could not hold it until attention reads it. Without
// having to read what it overwrites it takes a quarter less time at the 1.3B shape (2026-11-25, Zen 4).
constexpr int64_t kStreamedBytes = 16 << 20;
// modulated_norm, gelu, quantize_rows, dequantize_rows: elements of one task, enough to hide the cost of handing it out.
constexpr int kRowTaskElements = 16384;

}  // namespace lolrt
