// frame_attention on tensor cores of sm_80 and later; frame_attention_sm90.cuh takes its place where it can.
//
//   score(q, k) = scale * <R(rotation[entry, page, frame, head]) q, k> + bias[entry, page, head]
//   out = softmax(score) V over all pages of the entry
//
// Tensors: q, out T [batch * frames, tokens, heads, dim]; page_table int32 [batch, pages]; K and V T or Fp8 [heads][tokens][dim]
// in each page; rotation float32 [batch, pages, frames, heads, pairs, 2]; bias float32 [batch, pages, heads]. T is Bf16 or Fp16.
// All rows are 16-byte aligned. A page of the table that is not there (-1), or whose bias is -inf, is passed over: of the first
// nothing but its entry in the table is read.
//
// A block is 128 query rows of one head of one entry of the batch, the frames' rows one after another, and the keys of all pages
// or of some (work_split.cuh). The entry is the block's number along y, which costs no register, and pages are counted over all
// entries. It has 4 warps of 32 rows; a warp keeps its rows' output and scores in registers. Keys come in tiles of
// `Keys`; a tile never spans two pages, the last one of a page may be partial: what it lacks is filled with zeros, its scores are
// masked, and half a tile is skipped where it is empty.
//
// Shared memory, bytes at dim 128 and 64 keys of 16-bit elements:
//   queries   128 x dim        32768   rotated for the page in hand
//   keys      Keys x dim       16384   of the tile in hand, then of the next
//   values    Keys x dim       16384
//   rotation  frames x pairs     576   (3 frames, 22 pairs up to 24) of the page in hand, then of the next; (1, 0) in its padding
// Copies run beside the arithmetic; each tile has two barriers:
//   keys landed, all warps past the last product with the values  ->  begin to copy this tile's values; scores; weights
//   values landed, all warps past the scores                      ->  begin to copy the next tile's keys; product with the values
// On the last tile of a page the second also begins the next page's rotation and fetches the unrotated queries' first channels
// anew: each thread rotates the one row that it has fetched, in place. K is never rotated.
//
// weights = 2^(c * score + b - max), c and b being scale and bias times log2(e). `max` is a running maximum that moves, for all
// rows of a warp, only when some row's scores pass it by 2^8; output and sums are then rescaled. Sums add the weights as they are
// before they are rounded for the product with V.
#pragma once

#include "attention.cuh"
#include "attention_products.cuh"

namespace lolrt::cuda {

constexpr int kAttentionThreads = 128;

// Keys of a tile. Two blocks fit into the 164 KB of shared memory that sm_80 and its larger successors have; where there are only
// 100 KB (sm_86, 89, 120 and their like) they do with half the keys. So do pages of 8-bit elements everywhere: what makes them
// wider takes registers. An architecture that is not known runs what was made for sm_80.
__host__ __device__ constexpr int attention_keys(int architecture, int stored_bytes) {
  const bool small = (architecture > 800 && architecture < 900) || (architecture >= 1200 && architecture < 1300);
  return small || stored_bytes == 1 ? 32 : 64;
}

constexpr int64_t attention_shared_bytes(int dim, int keys, int stored_bytes, int64_t frames, int64_t tokens, int64_t pairs) {
  return dim * (2 * kAttentionRows + 2 * keys * stored_bytes) + 8 * rounded_pairs(pairs) * attention_frames(frames, tokens);
}

// Stored: the element type of the pages.
template <class Element, class Stored, int Dim, int Keys, bool Probe>
class AttentionBlock {
  using Products = AttentionProducts<Element, Stored, Dim>;
  static constexpr int kQueryBytes = Products::kQueryBytes, kRowBytes = Products::kRowBytes, kChunks = Dim / 8;
  static constexpr int kKeysAt = kAttentionRows * kQueryBytes, kValuesAt = kKeysAt + Keys * kRowBytes;
  static constexpr int kRotationAt = kValuesAt + Keys * kRowBytes;
  static constexpr int kRowChunks = kRowBytes / 16, kChunkElements = Dim / kRowChunks;  // of a tile
  static constexpr int kCopyRows = kAttentionThreads / kRowChunks;                      // that the block copies at once
  static_assert(Keys % 32 == 0 && Dim % 64 == 0 && kCopyRows % 8 == 0, "halves of tiles are whole 16 x 16 matrices");

 public:
  __device__ __forceinline__ explicit AttentionBlock(const AttentionArgument &argument)
      : argument_(argument),
        op_(argument.op),
        segment_(segment_of(argument, static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y))),
        shared_(shared_memory()),
        thread_(static_cast<int>(threadIdx.x)),
        lane_(thread_ % kWarpLanes),
        warp_row_(thread_ / kWarpLanes * kAttentionWarpRows),
        head_(segment_.head),
        first_row_(segment_.first_row),
        rows_(argument.rows),
        page_tokens_(static_cast<int>(op_.page_tokens)),
        pages_end_(segment_.pages_end),
        turned_chunks_(argument.turned_chunks) {}

  __device__ __forceinline__ void run() {
    begin();
    const int page = next_page(op_, head_, segment_.page, pages_end_);
    if (page < pages_end_) attend(page);
    finish();
  }

 private:
  // Of queries.
  __device__ __forceinline__ static int at(int row, int chunk) { return chunk_at<kQueryBytes>(row, chunk); }

  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int n = 0; n < kChunks; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out_[half][n][i] = 0.0f;
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        max_[half][r] = -INFINITY;
        sum_[half][r] = 0.0f;
      }
    }
  }

  __device__ __forceinline__ void attend(int page) {
    int page_index = op_.page_table[page];  // of the page, or of the next from the last tile's second barrier on
    copy_queries(kChunks);
    pad_rotation();
    copy_rotation(page);
    copy_tile(kKeysAt, page_index, 0, page_tokens_);
    commit_copy_group();
    while (page < pages_end_) {
      const float bias = page_bias(op_, head_, page);
      if constexpr (sizeof(Stored) == 1) factors_ = Products::factors(scales_at(page_index));
      const int following = next_page(op_, head_, page + 1, pages_end_);
      for (int left = page_tokens_; left > 0; left -= Keys) {  // keys of the page from this tile on
        wait_for_copies<0>();
        sync_block();
        copy_tile(kValuesAt, page_index, argument_.values, left);
        commit_copy_group();
        if (left == page_tokens_) rotate_queries();
        const auto begin_next_tile = [&] {
          if (left > Keys) {
            copy_tile(kKeysAt, page_index, 0, left - Keys);
          } else if (following < pages_end_) {
            page_index = op_.page_table[following];
            copy_queries(turned_chunks_);
            copy_rotation(following);
            copy_tile(kKeysAt, page_index, 0, page_tokens_);
          }
          commit_copy_group();
        };
        if (left > Keys / 2) {
          attend_tile<Keys / 16>(left, bias, begin_next_tile);
        } else {
          attend_tile<Keys / 32>(left, bias, begin_next_tile);
        }
      }
      if constexpr (Probe) end_page(page);
      page = following;
    }
  }

  // ---- copies ----

  // The tile of keys, or of values with their offset in the page, from which on the page with that index has `left`; zeros
  // beyond.
  __device__ __forceinline__ void copy_tile(int to, int page_index, int64_t offset, int left) const {
    const int row = thread_ / kRowChunks;
    const Stored *from = static_cast<const Stored *>(op_.pool) + page_index * op_.page_stride + offset +
                         head_ * argument_.head_elements + static_cast<int64_t>(page_tokens_ - left) * Dim +
                         thread_ * kChunkElements;
    unsigned char *first = shared_ + to + chunk_at<kRowBytes>(row, thread_ % kRowChunks);
    if (left >= Keys) {
#pragma unroll
      for (int i = 0; i < Keys / kCopyRows; ++i) copy_async(first + i * kCopyRows * kRowBytes, from + i * kCopyRows * Dim);
    } else {
#pragma unroll
      for (int i = 0; i < Keys / kCopyRows; ++i) {
        const bool valid = row + i * kCopyRows < left;
        copy_async(first + i * kCopyRows * kRowBytes, valid ? from + i * kCopyRows * Dim : from - row * Dim, valid);
      }
    }
  }

  // Of the head's K and of its V.
  __device__ __forceinline__ const float *scales_at(int page_index) const {
    const Stored *page = static_cast<const Stored *>(op_.pool) + page_index * op_.page_stride;
    return reinterpret_cast<const float *>(page + argument_.scales) + 2 * head_;
  }

  // The first chunks of this thread's query row, unrotated.
  __device__ __forceinline__ void copy_queries(int chunks) const {
    const int row = first_row_ + thread_;
    const bool valid = row < rows_;
    const int tokens = static_cast<int>(op_.tokens);
    const int frame = static_cast<int>(blockIdx.y) * argument_.frames + (valid ? row / tokens : 0);
    const int token = valid ? row % tokens : 0;
    const Element *from =
        static_cast<const Element *>(op_.q.data) + frame * op_.q.frame + token * op_.q.token + head_ * op_.q.head;
    for (int chunk = 0; chunk < chunks; ++chunk) copy_async(shared_ + at(thread_, chunk), from + chunk * 8, valid);
  }

  __device__ __forceinline__ int first_frame() const { return first_row_ / static_cast<int>(op_.tokens); }

  __device__ __forceinline__ int frames_of_block() const {
    const int last_row = min(first_row_ + kAttentionRows, rows_) - 1;
    return last_row / static_cast<int>(op_.tokens) - first_frame() + 1;
  }

  __device__ __forceinline__ float2 *rotation(int frame) const {
    return reinterpret_cast<float2 *>(shared_ + kRotationAt) + frame * turned_chunks_ * 4;
  }

  __device__ __forceinline__ void copy_rotation(int page) const {
    const int pairs = static_cast<int>(op_.pairs);
    for (int frame = 0; frame < frames_of_block(); ++frame) {
      const int64_t row = (static_cast<int64_t>(page) * argument_.frames + first_frame() + frame) * op_.heads + head_;
      for (int pair = thread_; pair < pairs; pair += kAttentionThreads) {
        copy_async_8(rotation(frame) + pair, op_.rotation + (row * pairs + pair) * 2);
      }
    }
  }

  __device__ __forceinline__ void pad_rotation() const {
    const int pairs = static_cast<int>(op_.pairs), padding = turned_chunks_ * 4 - pairs;
    for (int frame = thread_; frame < frames_of_block(); frame += kAttentionThreads) {
      for (int i = 0; i < padding; ++i) rotation(frame)[pairs + i] = {1.0f, 0.0f};
    }
  }

  // ---- arithmetic ----

  // Turns this thread's row; the warp's rows are ready when it returns.
  __device__ __forceinline__ void rotate_queries() const {
    const int row = min(first_row_ + thread_, rows_ - 1);
    const auto *table = reinterpret_cast<const float4 *>(rotation(row / static_cast<int>(op_.tokens) - first_frame()));
    for (int chunk = 0; chunk < turned_chunks_; ++chunk) {
      auto *words = reinterpret_cast<uint4 *>(shared_ + at(thread_, chunk));
      const float4 low = table[2 * chunk], high = table[2 * chunk + 1];
      const uint4 x = *words;
      *words = {turn<Element>(x.x, low.x, low.y), turn<Element>(x.y, low.z, low.w), turn<Element>(x.z, high.x, high.y),
                turn<Element>(x.w, high.z, high.w)};
    }
    sync_warp();
  }

  // The first 16 * Groups keys of the tile, of which the page has `left`.
  template <int Groups, class BeginNextTile>
  __device__ __forceinline__ void attend_tile(int left, float bias, const BeginNextTile &begin_next_tile) {
    float scores[kHalves][2 * Groups][4];
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int n = 0; n < 2 * Groups; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[half][n][i] = 0.0f;
      }
    }
    Products::template score<Groups>(scores, shared_, shared_ + kKeysAt, warp_row_, lane_, factors_);
    if (left < 16 * Groups) mask<Groups>(left, scores);
    uint32_t weights[kHalves][Groups][4];
    weigh<Groups>(bias, scores, weights);
    wait_for_copies<0>();
    sync_block();
    begin_next_tile();
    Products::template add_values<Groups>(out_, weights, shared_ + kValuesAt, lane_, factors_);
  }

  // From the end, up to the first 8 keys that are all there.
  template <int Groups>
  __device__ __forceinline__ void mask(int left, float (&scores)[kHalves][2 * Groups][4]) const {
#pragma unroll
    for (int n = 2 * Groups - 1; n >= 0; --n) {
      if (n * 8 + 8 <= left) break;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (n * 8 + lane_ % 4 * 2 + i < left) continue;
#pragma unroll
        for (int half = 0; half < kHalves; ++half) scores[half][n][i] = scores[half][n][i + 2] = -INFINITY;
      }
    }
  }

  template <int Groups>
  __device__ __forceinline__ void weigh(float bias, const float (&scores)[kHalves][2 * Groups][4],
                                        uint32_t (&weights)[kHalves][Groups][4]) {
    const float c = argument_.score_scale;
    float high[kHalves][2];
    bool raise = false;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float most = fmaxf(scores[half][0][2 * r], scores[half][0][2 * r + 1]);
#pragma unroll
        for (int n = 1; n < 2 * Groups; ++n) most = fmaxf(most, fmaxf(scores[half][n][2 * r], scores[half][n][2 * r + 1]));
        high[half][r] = fmaf(row_max(most), c, bias);
        raise |= high[half][r] > max_[half][r] + kRescaleAbove;
      }
    }
    if (any_lane(raise)) raise_max(high);
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float shift = bias - max_[half][r];
#pragma unroll
        for (int n = 0; n < 2 * Groups; ++n) {
          const float first = exp2_approx(fmaf(scores[half][n][2 * r], c, shift));
          const float second = exp2_approx(fmaf(scores[half][n][2 * r + 1], c, shift));
          sum_[half][r] += first;
          sum_[half][r] += second;
          weights[half][n / 2][n % 2 * 2 + r] = pack<Element>(first, second);
        }
      }
    }
  }

  __device__ __forceinline__ void raise_max(const float (&high)[kHalves][2]) {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float max = fmaxf(max_[half][r], high[half][r]);
        const float factor = rescaling(max_[half][r], max);
        max_[half][r] = max;
        sum_[half][r] *= factor;
#pragma unroll
        for (int n = 0; n < kChunks; ++n) {
          out_[half][n][2 * r] *= factor;
          out_[half][n][2 * r + 1] *= factor;
        }
      }
    }
  }

  // ---- results ----

  // What would be a few registers in the loop over tiles, which has none left, is computed anew.
  __device__ __forceinline__ Segment this_segment() const {
    return segment_of(argument_, computed_here(static_cast<int>(blockIdx.x)), computed_here(static_cast<int>(blockIdx.y)));
  }

  // Of the tile.
  __device__ __forceinline__ int row_of(int half, int r) const { return warp_row_ + half * 16 + r * 8 + lane_ / 4; }

  __device__ __forceinline__ void end_page(int page) const {
    const Segment segment = this_segment();
    const int first_row = segment.first_row + computed_here(row_of(0, 0));
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float sum = row_sum(sum_[half][r]);
        const int row = first_row + half * 16 + r * 8;
        if (lane_ % 4 == 0 && row < rows_) {
          argument_.page_state[(page * op_.heads + segment.head) * rows_ + row] = {max_[half][r], sum};
        }
      }
    }
  }

  __device__ __forceinline__ void finish() const {
    const Segment segment = this_segment();
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        store_row<Element, Dim>(argument_, segment, row_of(half, r), max_[half][r], sum_[half][r],
                                [&](int n) { return float2{out_[half][n][2 * r], out_[half][n][2 * r + 1]}; });
      }
    }
  }

  const AttentionArgument &argument_;
  const FrameAttention &op_;
  const Segment segment_;
  unsigned char *const shared_;
  const int thread_, lane_, warp_row_, head_, first_row_, rows_, page_tokens_, pages_end_, turned_chunks_;
  // Of rows g and g + 8 of each 16, g = lane / 4, as in device/matrix.cuh; sums are of this lane's columns.
  float out_[kHalves][kChunks][4], max_[kHalves][2], sum_[kHalves][2];
  typename Products::Factors factors_;  // of the page in hand
};

template <class Element, class Stored, int Dim, int Keys, bool Probe>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    frame_attention_kernel(const __grid_constant__ AttentionArgument argument) {
  if constexpr (kArchitecture == 0 || (Keys == attention_keys(kArchitecture, sizeof(Stored)) &&
                                       !runs_on_warpgroups(kArchitecture, sizeof(Stored), Dim))) {
    AttentionBlock<Element, Stored, Dim, Keys, Probe>(argument).run();
  } else {
    trap();
  }
}

}  // namespace lolrt::cuda
