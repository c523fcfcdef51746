// The operations after their descriptors have been checked: plain numbers and pointers, the same for every backend.
#pragma once

#include "core/page_layout.h"

#include <cstdint>

namespace lolrt {

// Where an op's tensors are and, on CUDA, the stream (cudaStream_t) that its work is queued on.
struct Target {
  lolrt_device device;
  void *stream;
};

// [frames, tokens, heads, dim] with a contiguous dim; strides in elements.
struct HeadRows {
  void *data = nullptr;
  int64_t frame = 0, token = 0, head = 0;

  template <class T>
  T *row(int64_t frame_index, int64_t token_index, int64_t head_index) const {
    return static_cast<T *>(data) + frame_index * frame + token_index * token + head_index * head;
  }
};

// [frames, tokens, channels] with contiguous channels; strides in elements.
struct ChannelRows {
  void *data = nullptr;
  int64_t frame = 0, token = 0;

  template <class T>
  T *row(int64_t frame_index, int64_t token_index) const {
    return static_cast<T *>(data) + frame_index * frame + token_index * token;
  }
};

// float32 [1 or frames, channels]; `frame` is 0 when all frames share a row.
struct FrameVector {
  const float *data = nullptr;
  int64_t frame = 0;
};

struct KvWrite {
  Target target;
  DType dtype;
  int64_t frames, tokens, heads, dim;
  float eps;
  HeadRows q, k, v, q_out;          // data is NULL where a half is left out
  const void *q_weight, *k_weight;  // [heads, dim] or NULL
  const float *rotation;            // [tokens, pairs, 2] or NULL
  int64_t pairs, rotation_first_channel;
  DType page_dtype;
  void *pages;
  int64_t page_stride;        // elements
  const int32_t *page_table;  // [frames]
};

// Biases count as no further from 0. Beyond, float32 does not tell a score with its bias from the running maximum well enough for
// weights to stay small, and a finite bias times log2(e) may be infinite.
constexpr float kMostBias = 0x1p24f;

// The entry of frame_attention's page table for a page that is not there.
constexpr int32_t kNoPage = -1;

struct FrameAttention {
  Target target;
  DType dtype;
  int64_t batch;   // entries, each with its own pages; `frames` is a multiple of it
  int64_t frames;  // of q, of all entries
  int64_t tokens, heads, dim, pages, page_tokens, pairs;
  float scale;
  HeadRows q, out;
  DType page_dtype;
  const void *pool;
  int64_t pool_pages;
  int64_t page_stride;        // elements
  const int32_t *page_table;  // [batch, pages]; kNoPage: nothing of the page is read
  const float *rotation;      // [batch, pages, batch_frames(), heads, pairs, 2] or NULL
  const float *bias;          // [batch, pages, heads] or NULL; -inf leaves a page out
  float *mass;                // [batch, pages, batch_frames(), heads] or NULL
  int32_t workers;            // on the CPU; as many as the workspace has room for
  void *workspace;

  int64_t batch_frames() const { return frames / batch; }  // of one entry
};

struct ModulatedNorm {
  Target target;
  DType dtype;
  int64_t frames, tokens, channels;
  float eps;
  ChannelRows x, residual, out;    // residual.data may be NULL
  FrameVector gate, scale, shift;  // gate.data may be NULL
};

struct QuantizeRows {
  DType dtype;  // of x
  int64_t frames, tokens, channels;
  ChannelRows x, q;
  float *scale;  // [frames, tokens]
};

struct DequantizeRows {
  DType dtype;  // of out; x is float32
  int64_t frames, tokens, channels;
  ChannelRows x, out;
  const float *scale;  // [frames, tokens]
  const float *bias;   // [channels]
};

struct Gelu {
  Target target;
  DType dtype;
  int64_t frames, tokens, channels;
  ChannelRows x;
};

// All tensors are float32 and contiguous.
struct SamplerStep {
  Target target;
  double level, after;
  int64_t elements;
  const float *sample, *velocity, *noise;  // noise may be NULL
  float *out;                              // may be sample
};

// [frames, rows, columns, channels] with contiguous channels; strides in elements.
struct Pixels {
  void *data = nullptr;
  int64_t frame = 0, row = 0, column = 0;

  template <class T>
  T *pixel(int64_t frame_index, int64_t row_index, int64_t column_index) const {
    return static_cast<T *>(data) + frame_index * frame + row_index * row + column_index * column;
  }
};

struct ChannelNorm {
  DType dtype, out_dtype;
  int64_t frames, rows, columns, channels;  // of x
  int64_t margin;                           // pixels on each side of out, zeros
  bool silu;
  Pixels x, out;
  const float *gamma;  // [channels]
};

struct Conv3d {
  static constexpr int64_t block = 16;  // output channels that lie together in the packed weights

  int64_t frames, rows, columns, out_channels;  // of the output
  int64_t in_channels, kernel_frames, kernel_rows, kernel_columns;
  Pixels past, x, residual, out;  // past.data and residual.data may be NULL; columns of past and x are adjacent
  const float *weight;            // [blocks, kernel_frames, kernel_rows, kernel_columns, in_channels, block]
  const float *bias;              // [blocks, block]

  struct Frame {
    const float *data;
    int64_t row;
  };
  // Input frame `index`, counted from the first past one; NULL stands for zeros.
  Frame frame(int64_t index) const {
    const int64_t past_frames = kernel_frames - 1;
    if (index >= past_frames) return {x.pixel<const float>(index - past_frames, 0, 0), x.row};
    return {past.data ? past.pixel<const float>(index, 0, 0) : nullptr, past.row};
  }
};

// The kernels of one instruction set.
struct Kernels {
  const char *isa;
  bool (*runs_here)();
  void (*kv_write)(const KvWrite &);
  uint64_t (*frame_attention_workspace)(const FrameAttention &);  // bytes
  void (*frame_attention)(const FrameAttention &);
  void (*modulated_norm)(const ModulatedNorm &);
  void (*gelu)(const Gelu &);
  void (*quantize_rows)(const QuantizeRows &);
  void (*dequantize_rows)(const DequantizeRows &);
  void (*sampler_step)(const SamplerStep &);
  void (*channel_norm)(const ChannelNorm &);
  void (*conv3d)(const Conv3d &);
};

// The CPU's kernels in use; fails when LOLRT_ISA names a set that cannot run here.
const Kernels &kernels();

}  // namespace lolrt
