// The warps of frame_attention_sm90.cuh that hold rows: scores, weights and output of 64 rows to a warpgroup.
#pragma once

#include "frame_attention_sm90_shared.cuh"

namespace lolrt::cuda {

template <class Element, bool Probe>
class Sm90Rows {
  static constexpr int kSteps = kSm90Dim / 16, kColumns = kSm90Keys / 8, kGroups = kSm90Keys / 16, kChunks = kSm90Dim / 8;

 public:
  // `thread` counts from the first that holds rows.
  __device__ __forceinline__ Sm90Rows(const AttentionArgument &argument, const Sm90Shared &shared, int thread)
      : argument_(argument),
        op_(argument.op),
        shared_(shared),
        thread_(thread),
        lane_(thread % kWarpLanes),
        steps_(turned_steps(argument.turned_chunks)) {}

  __device__ __forceinline__ void run(const Sm90Argument &argument) {
    if (warpgroup() == 1) pass_turn();  // the first is the other's
    for_each_segment(argument, [&](int number) {
      number_ = number;
      // Lanes leave the loop over tiles together, which the compiler cannot know.
      first_tile_ = same_in_warp(first_tile_ + tile_);
      tile_ = 0;
      begin();
      if (begin_page()) attend();
      finish();
    });
    if (warpgroup() == 0) take_turn();  // the last one is passed on to nobody else
  }

 private:
  __device__ __forceinline__ int warpgroup() const { return thread_ / kWarpgroupThreads; }

  // A warpgroup begins products in its turn alone. So the tensor cores have the products of one, then those of the other, and
  // each computes weights while the other's are under way.
  __device__ __forceinline__ void take_turn() const { sync_named<kSm90RowThreads>(1 + warpgroup()); }
  __device__ __forceinline__ void pass_turn() const { arrive_named<kSm90RowThreads>(2 - warpgroup()); }

  // Found where it is needed, so that it occupies no registers in the loop.
  __device__ __forceinline__ Segment segment() const { return segment_of(argument_, computed_here(number_)); }

  // Among those of all segments.
  __device__ __forceinline__ int tile() const { return first_tile_ + tile_; }

  // g = lane / 4 of a warp's 16 rows and g + 8, of those of the segment.
  __device__ __forceinline__ int row_of(int r) const { return thread_ / kWarpLanes * 16 + lane_ / 4 + r * 8; }

  __device__ __forceinline__ void begin() {
    const Segment segment = this->segment();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = segment.first_row + row_of(r);
      const bool valid = row < argument_.rows;
      const uint32_t *from = row_words(argument_, op_.q, static_cast<int>(blockIdx.y), segment.head, valid ? row : 0) + lane_ % 4;
#pragma unroll
      for (int word = r; word < kSteps * 4; word += 2) {
        queries_[word / 4][word % 4] = valid ? from[word / 2 * 4] : 0;
      }
      max_[r] = -INFINITY;
      sum_[r] = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const uint32_t (&words)[4] = queries_[step];
      if (step < steps_) *shared_.unrotated(step, thread_) = {words[0], words[1], words[2], words[3]};
    }
#pragma unroll
    for (int i = 0; i < kChunks * 4; ++i) out_[i] = 0.0f;
  }

  // False when there is none any more.
  __device__ __forceinline__ bool begin_page() {
    const int stage = stage_of(notices_);
    wait_for_phase(shared_.page_full(stage), parity_of(notices_));
    page_ = shared_.notice(stage)->page;
    bias_ = shared_.notice(stage)->bias;
    if (page_ >= 0) rotate_queries(shared_.rotation(stage));
    sync_warp();
    if (lane_ == 0) arrive(shared_.page_free(stage));
    ++notices_;
    return page_ >= 0;
  }

  __device__ __forceinline__ void rotate_queries(const float2 *rotation) {
    const int tokens = static_cast<int>(op_.tokens), first_row = segment().first_row;
    const float2 *table[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int frame = min(first_row + row_of(r), argument_.rows - 1) / tokens - first_row / tokens;
      table[r] = rotation + frame * steps_ * 8 + lane_ % 4;
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (step >= steps_) break;
      const uint4 x = *shared_.unrotated(step, thread_);
      const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 angle = table[i % 2][step * 8 + i / 2 * 4];
        queries_[step][i] = turn<Element>(words[i], angle.x, angle.y);
      }
    }
  }

  __device__ __forceinline__ void attend() {
    const int page_tokens = static_cast<int>(op_.page_tokens);
    int left = page_tokens;  // keys of the page from this tile on
    take_turn();
    begin_scores();
    pass_turn();
    wait_for_products<0>();
    pin(scores_);
    release(shared_.keys_free(stage_of(tile())));
    weigh(left);
    round_weights();
    while (true) {
      ++tile_;
      left -= kSm90Keys;
      if (left <= 0) {
        if constexpr (Probe) end_page();
        if (!begin_page()) break;
        left = page_tokens;
      }
      take_turn();
      begin_scores();
      add_values();
      pass_turn();
      wait_for_products<1>();
      pin(scores_);
      release(shared_.keys_free(stage_of(tile())));
      const bool raised = weigh(left);
      wait_for_products<0>();
      pin(out_);
      release(shared_.values_free(stage_of(tile() - 1)));
      if (raised) rescale();
      round_weights();
    }
    take_turn();
    add_values();
    pass_turn();
    wait_for_products<0>();
    pin(out_);
    release(shared_.values_free(stage_of(tile() - 1)));
  }

  __device__ __forceinline__ void release(Barrier *barrier) const {
    if (lane_ == 0) arrive(barrier);
  }

  // Begins the product of the queries with the keys of the tile.
  __device__ __forceinline__ void begin_scores() {
    const int stage = stage_of(tile());
    const unsigned char *keys = shared_.keys(stage);
    wait_for_phase(shared_.keys_full(stage), parity_of(tile()));
    fence_products();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int channel = step * 16;
      const unsigned char *first = keys + channel / kBoxChannels * kBoxBytes + channel % kBoxChannels * 2;
      multiply_rows<Element>(scores_, queries_[step], matrix_descriptor(first, 0), step > 0);
    }
    commit_product_group();
  }

  // Begins the product of the weights with the values of the tile before.
  __device__ __forceinline__ void add_values() {
    const int stage = stage_of(tile() - 1);
    const unsigned char *values = shared_.values(stage);
    wait_for_phase(shared_.values_full(stage), parity_of(tile() - 1));
    fence_products();
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      multiply_add_columns<Element>(out_, weights_[group], matrix_descriptor(values + group * 2 * kGroupBytes, kBoxBytes));
    }
    commit_product_group();
  }

  // Scores become weights; whether what is there is to be rescaled by factor_.
  __device__ __forceinline__ bool weigh(int left) {
    if (left < kSm90Keys) mask(left);
    const float c = argument_.score_scale;
    float high[2];
    bool raise = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = fmaxf(scores_[2 * r], scores_[2 * r + 1]);
#pragma unroll
      for (int n = 1; n < kColumns; ++n) most = fmaxf(most, fmaxf(scores_[4 * n + 2 * r], scores_[4 * n + 2 * r + 1]));
      high[r] = fmaf(row_max(most), c, bias_);
      raise |= high[r] > max_[r] + kRescaleAbove;
    }
    raise = any_lane(raise);
    if (raise) raise_max(high);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float shift = bias_ - max_[r];
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int i = 4 * n + 2 * r; i < 4 * n + 2 * r + 2; ++i) {
          scores_[i] = exp2_approx(fmaf(scores_[i], c, shift));
          sum_[r] += scores_[i];
        }
      }
    }
    return raise;
  }

  // From the end, up to the first 8 keys that are all there.
  __device__ __forceinline__ void mask(int left) {
#pragma unroll
    for (int n = kColumns - 1; n >= 0; --n) {
      if (n * 8 + 8 <= left) break;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (n * 8 + lane_ % 4 * 2 + i >= left) scores_[4 * n + i] = scores_[4 * n + i + 2] = -INFINITY;
      }
    }
  }

  __device__ __forceinline__ void raise_max(const float (&high)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float max = fmaxf(max_[r], high[r]);
      factor_[r] = rescaling(max_[r], max);
      max_[r] = max;
      sum_[r] *= factor_[r];
    }
  }

  __device__ __forceinline__ void rescale() {
#pragma unroll
    for (int n = 0; n < kChunks; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out_[4 * n + i] *= factor_[i / 2];
    }
  }

  __device__ __forceinline__ void round_weights() {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        weights_[group][i] = pack<Element>(scores_[group * 8 + i * 2], scores_[group * 8 + i * 2 + 1]);
      }
    }
  }

  // ---- results ----

  __device__ __forceinline__ void end_page() const {
    const Segment segment = this->segment();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float sum = row_sum(sum_[r]);
      const int row = segment.first_row + row_of(r);
      if (lane_ % 4 == 0 && row < argument_.rows) {
        argument_.page_state[(page_ * op_.heads + segment.head) * argument_.rows + row] = {max_[r], sum};
      }
    }
  }

  __device__ __forceinline__ void finish() const {
    const Segment segment = this->segment();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      store_row<Element, kSm90Dim>(argument_, segment, row_of(r), max_[r], sum_[r],
                                   [&](int n) { return float2{out_[4 * n + 2 * r], out_[4 * n + 2 * r + 1]}; });
    }
  }

  const AttentionArgument &argument_;
  const FrameAttention &op_;
  const Sm90Shared &shared_;
  const int thread_, lane_, steps_;
  int number_ = 0, first_tile_ = 0;  // of the segment
  int tile_ = 0, page_ = 0;
  int notices_ = 0;  // that were read
  float bias_ = 0.0f;
  // Of two rows, as in device/warpgroup.cuh; sums are of this lane's columns.
  uint32_t queries_[kSteps][4], weights_[kGroups][4];
  float scores_[kSm90Keys / 2], out_[kSm90Dim / 2], max_[2], sum_[2], factor_[2];
};

}  // namespace lolrt::cuda
