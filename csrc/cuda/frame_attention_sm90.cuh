// frame_attention on the warpgroup products of sm_90a; formula, tensors and roundings are those of frame_attention.cuh, at dim
// 128.
//
// A block is 128 query rows of one head, the frames' rows one after another, and all keys, in tiles of 112. Its 12 warps:
//   0      copies tiles of keys and values (TMA)
//   1      says which page is next, with its bias and the block's rotation
//   4-7    rows 0-63: scores, weights and output in registers; the queries too, rotated for the page in hand
//   8-11   rows 64-127
// A tile never spans two pages; what the last one of a page lacks is filled with zeros by the copy, and its scores are masked.
//
// Shared memory, bytes at 3 frames of 1560 tokens and 22 pairs:
//   keys        2 x 112 x 128         57344   of two tiles; a tile is two boxes of 64 channels
//   values      2 x 112 x 128         57344
//   barriers    12                      128
//   unrotated   24 pairs x 128 rows   12288   the queries' first channels, each thread's own words
//   pages       2 x (16 + 2 frames)     800   number, bias, and (cos, sin) of 24 pairs for each frame; (1, 0) in the padding
//
// Each of those pairs has a barrier for being full and one for being free again. Who waits for whom:
//   warp 0 waits for a tile's memory to be free, announces the bytes, and begins its copies; they fill it
//   warp 1 waits for a page's memory to be free, writes it, and says that it is full
//   a warp of rows, for tile i of all tiles:
//     a page begins: its notice is full -> rotate the queries, which no product reads now; free the notice
//     keys of i full -> begin their product; values of i - 1 full -> begin theirs, with the weights of i - 1
//     product with the keys over -> free them; weights of i, beside the product with the values
//     product with the values over -> free them; rescale the output, round the weights
#pragma once

#include "attention.cuh"
#include "matrix_descriptor.cuh"

#include <device/bulk_copy.cuh>
#include <device/warpgroup.cuh>

namespace lolrt::cuda {

constexpr int kSm90Dim = 128, kSm90Keys = 112;
constexpr int kSm90Stages = 2;  // tiles of keys, tiles of values, and pages that there is room for
constexpr int kSm90RowThreads = 2 * kWarpgroupThreads;
constexpr int kSm90Threads = kSm90RowThreads + kWarpgroupThreads;
// Of a thread: 168 for each at the launch are as many as these for a third and for two thirds of them.
constexpr int kSm90CopyRegisters = 40, kSm90RowRegisters = 232;
// A box of 64 channels, the 128 bytes within which a copy permutes.
constexpr int kBoxChannels = 64, kBoxBytes = kSm90Keys * kBoxChannels * 2;
constexpr int kTileBytes = kSm90Dim / kBoxChannels * kBoxBytes;
static_assert(kSm90Keys % 16 == 0, "a product takes 16 keys' values");
static_assert(kBoxBytes % kGroupBytes == 0, "matrices begin with a group");

// Products of 16 channels in which queries are rotated.
__host__ __device__ constexpr int turned_steps(int turned_chunks) { return (turned_chunks + 1) / 2; }

struct Sm90Argument {
  AttentionArgument attention;
  TensorMap keys, values;
};

// What the rows' warps are told about a page; the rotation, float2 [frames][8 * steps], follows.
struct PageNotice {
  int page;    // op.pages: there is none any more
  float bias;  // times log2(e)
  int unused[2];
};

// Where things lie in shared memory.
class Sm90Shared {
 public:
  __host__ __device__ static constexpr int bytes(int steps, int frames) {
    return kPagesAt(steps) + kSm90Stages * notice_bytes(steps, frames);
  }

  __device__ __forceinline__ explicit Sm90Shared(int steps, int frames)
      : base_(shared_memory()), pages_(base_ + kPagesAt(steps)), notice_bytes_(notice_bytes(steps, frames)) {}

  __device__ __forceinline__ unsigned char *keys(int stage) const { return base_ + stage * kTileBytes; }
  __device__ __forceinline__ unsigned char *values(int stage) const { return base_ + (kSm90Stages + stage) * kTileBytes; }
  __device__ __forceinline__ Barrier *keys_full(int stage) const { return barrier(0, stage); }
  __device__ __forceinline__ Barrier *keys_free(int stage) const { return barrier(1, stage); }
  __device__ __forceinline__ Barrier *values_full(int stage) const { return barrier(2, stage); }
  __device__ __forceinline__ Barrier *values_free(int stage) const { return barrier(3, stage); }
  __device__ __forceinline__ Barrier *page_full(int stage) const { return barrier(4, stage); }
  __device__ __forceinline__ Barrier *page_free(int stage) const { return barrier(5, stage); }
  // The four words of a thread that holds rows, for a step of 16 channels.
  __device__ __forceinline__ uint4 *unrotated(int step, int thread) const {
    return reinterpret_cast<uint4 *>(base_ + kUnrotatedAt) + step * kSm90RowThreads + thread;
  }
  __device__ __forceinline__ PageNotice *notice(int stage) const {
    return reinterpret_cast<PageNotice *>(pages_ + stage * notice_bytes_);
  }
  __device__ __forceinline__ float2 *rotation(int stage) const { return reinterpret_cast<float2 *>(notice(stage) + 1); }

 private:
  static constexpr int kBarriersAt = 2 * kSm90Stages * kTileBytes, kUnrotatedAt = kBarriersAt + 128;
  __host__ __device__ static constexpr int kPagesAt(int steps) { return kUnrotatedAt + steps * kSm90RowThreads * 16; }
  __host__ __device__ static constexpr int notice_bytes(int steps, int frames) {
    return static_cast<int>(sizeof(PageNotice)) + frames * steps * 8 * static_cast<int>(sizeof(float2));
  }
  __device__ __forceinline__ Barrier *barrier(int kind, int stage) const {
    return reinterpret_cast<Barrier *>(base_ + kBarriersAt) + kind * kSm90Stages + stage;
  }

  unsigned char *const base_, *const pages_;
  const int notice_bytes_;
};

// Which of the stages the tile or page of that number uses, and the parity of the phase in which it is filled.
__device__ __forceinline__ int stage_of(int number) { return number % kSm90Stages; }
__device__ __forceinline__ int parity_of(int number) { return number / kSm90Stages % 2; }

// ---- the warps that copy ----

// Lane 0 of warp 0. The first to use a stage finds it free: the phase before the first is over and has parity 1.
__device__ __forceinline__ void copy_tiles(const Sm90Argument &argument, const Sm90Shared &shared, int head) {
  const FrameAttention &op = argument.attention.op;
  const int pages = static_cast<int>(op.pages), page_tokens = static_cast<int>(op.page_tokens);
  int page = next_page(op, head, 0);
  int place = page < pages ? op.page_table[page] : 0;
  for (int tile = 0; page < pages;) {
    page = next_page(op, head, page + 1);
    const int following = page < pages ? op.page_table[page] : 0;
    for (int token = 0; token < page_tokens; token += kSm90Keys, ++tile) {
      const int stage = stage_of(tile), free = parity_of(tile) ^ 1;
      wait_for_phase(shared.keys_free(stage), free);
      arrive_expecting(shared.keys_full(stage), kTileBytes);
      for (int channel = 0; channel < kSm90Dim; channel += kBoxChannels) {
        copy_box(shared.keys(stage) + channel / kBoxChannels * kBoxBytes, &argument.keys, shared.keys_full(stage), channel, token,
                 head, place);
      }
      wait_for_phase(shared.values_free(stage), free);
      arrive_expecting(shared.values_full(stage), kTileBytes);
      for (int channel = 0; channel < kSm90Dim; channel += kBoxChannels) {
        copy_box(shared.values(stage) + channel / kBoxChannels * kBoxBytes, &argument.values, shared.values_full(stage), channel,
                 token, head, place);
      }
    }
    place = following;
  }
}

// Warp 1.
__device__ __forceinline__ void announce_pages(const AttentionArgument &argument, const Sm90Shared &shared, int head,
                                               int first_frame, int frames, int lane) {
  const FrameAttention &op = argument.op;
  const int pages = static_cast<int>(op.pages), pairs = static_cast<int>(op.pairs);
  const int room = turned_steps(argument.turned_chunks) * 8;  // pairs with their padding
  int page = -1;
  for (int number = 0; page < pages; ++number) {
    page = next_page(op, head, page + 1);
    const int stage = stage_of(number);
    wait_for_phase(shared.page_free(stage), parity_of(number) ^ 1);
    if (page < pages) {
      for (int frame = 0; frame < frames; ++frame) {
        const int64_t row = (page * op.frames + first_frame + frame) * op.heads + head;
        const auto *from = reinterpret_cast<const float2 *>(op.rotation) + row * pairs;
        for (int pair = lane; pair < room; pair += kWarpLanes) {
          shared.rotation(stage)[frame * room + pair] = pair < pairs ? from[pair] : float2{1.0f, 0.0f};
        }
      }
    }
    if (lane == 0) {
      PageNotice *notice = shared.notice(stage);
      notice->page = page;
      notice->bias = op.bias && page < pages ? op.bias[static_cast<int64_t>(page) * op.heads + head] * kLog2E : 0.0f;
    }
    sync_warp();
    if (lane == 0) arrive(shared.page_full(stage));
  }
}

// ---- the warps that hold rows ----

template <class Element, bool Probe>
class Sm90Rows {
  static constexpr int kSteps = kSm90Dim / 16, kColumns = kSm90Keys / 8, kGroups = kSm90Keys / 16, kChunks = kSm90Dim / 8;

 public:
  // `thread` counts from the first that holds rows.
  __device__ __forceinline__ Sm90Rows(const AttentionArgument &argument, const Sm90Shared &shared, int head, int first_row,
                                      int first_frame, int thread)
      : argument_(argument),
        op_(argument.op),
        shared_(shared),
        thread_(thread),
        lane_(thread % kWarpLanes),
        head_(head),
        first_row_(first_row),
        first_frame_(first_frame),
        steps_(turned_steps(argument.turned_chunks)) {}

  __device__ __forceinline__ void run() {
    begin();
    if (begin_page()) attend();
    finish();
  }

 private:
  // g = lane / 4 of a warp's 16 rows and g + 8, of the whole tensor; rows from argument_.rows on are not there.
  __device__ __forceinline__ int row_of(int r) const { return first_row_ + thread_ / kWarpLanes * 16 + lane_ / 4 + r * 8; }

  // Of the row's 16-byte chunks, this lane's words.
  __device__ __forceinline__ uint32_t *words_of(const HeadRows &rows, int row) const {
    const int tokens = static_cast<int>(op_.tokens);
    Element *first =
        static_cast<Element *>(rows.data) + row / tokens * rows.frame + row % tokens * rows.token + head_ * rows.head;
    return reinterpret_cast<uint32_t *>(first) + lane_ % 4;
  }

  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = row_of(r);
      const bool valid = row < argument_.rows;
      const uint32_t *from = words_of(op_.q, valid ? row : 0);
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
    const int stage = stage_of(pages_begun_);
    wait_for_phase(shared_.page_full(stage), parity_of(pages_begun_));
    page_ = shared_.notice(stage)->page;
    bias_ = shared_.notice(stage)->bias;
    if (page_ == op_.pages) return false;
    rotate_queries(shared_.rotation(stage));
    sync_warp();
    if (lane_ == 0) arrive(shared_.page_free(stage));
    ++pages_begun_;
    return true;
  }

  __device__ __forceinline__ void rotate_queries(const float2 *rotation) {
    const int tokens = static_cast<int>(op_.tokens);
    const float2 *table[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int frame = min(row_of(r), argument_.rows - 1) / tokens - first_frame_;
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
    begin_scores();
    wait_for_products<0>();
    pin(scores_);
    release(shared_.keys_free(stage_of(tile_)));
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
      begin_scores();
      add_values();
      wait_for_products<1>();
      pin(scores_);
      release(shared_.keys_free(stage_of(tile_)));
      const bool raised = weigh(left);
      wait_for_products<0>();
      pin(out_);
      release(shared_.values_free(stage_of(tile_ - 1)));
      if (raised) rescale();
      round_weights();
    }
    add_values();
    wait_for_products<0>();
    pin(out_);
  }

  __device__ __forceinline__ void release(Barrier *barrier) const {
    if (lane_ == 0) arrive(barrier);
  }

  // Begins the product of the queries with the keys of the tile.
  __device__ __forceinline__ void begin_scores() {
    const int stage = stage_of(tile_);
    const unsigned char *keys = shared_.keys(stage);
    wait_for_phase(shared_.keys_full(stage), parity_of(tile_));
    fence_products();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int channel = step * 16;
      const unsigned char *first = keys + channel / kBoxChannels * kBoxBytes + channel % kBoxChannels * 2;
      multiply_rows<Element>(scores_, queries_[step], matrix_descriptor(first, 0), step > 0);
    }
    close_product_group();
  }

  // Begins the product of the weights with the values of the tile before.
  __device__ __forceinline__ void add_values() {
    const int stage = stage_of(tile_ - 1);
    const unsigned char *values = shared_.values(stage);
    wait_for_phase(shared_.values_full(stage), parity_of(tile_ - 1));
    fence_products();
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      multiply_add_columns<Element>(out_, weights_[group], matrix_descriptor(values + group * 2 * kGroupBytes, kBoxBytes));
    }
    close_product_group();
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
      // Nothing has been weighed while the maximum is -inf; it stays so when all scores are NaN.
      factor_[r] = max_[r] == -INFINITY ? 0.0f : exp2_approx(max_[r] - max);
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
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float sum = row_sum(sum_[r]);
      const int row = row_of(r);
      if (lane_ % 4 == 0 && row < argument_.rows) {
        argument_.page_state[(head_ * op_.pages + page_) * argument_.rows + row] = {max_[r], sum};
      }
    }
  }

  __device__ __forceinline__ void finish() const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float sum = row_sum(sum_[r]);
      // A head whose pages are all left out has no weights: its output is 0.
      const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
      const int row = row_of(r);
      if (row >= argument_.rows) continue;
      uint32_t *words = words_of(op_.out, row);
#pragma unroll
      for (int n = 0; n < kChunks; ++n) {
        words[4 * n] = pack<Element>(out_[4 * n + 2 * r] * inverse, out_[4 * n + 2 * r + 1] * inverse);
      }
    }
  }

  const AttentionArgument &argument_;
  const FrameAttention &op_;
  const Sm90Shared &shared_;
  const int thread_, lane_, head_, first_row_, first_frame_, steps_;
  int tile_ = 0, pages_begun_ = 0, page_ = 0;
  float bias_ = 0.0f;
  // Of two rows, as in device/warpgroup.cuh; sums are of this lane's columns.
  uint32_t queries_[kSteps][4], weights_[kGroups][4];
  float scores_[kSm90Keys / 2], out_[kSm90Dim / 2], max_[2], sum_[2], factor_[2];
};

template <class Element, bool Probe>
__device__ __forceinline__ void attend_on_warpgroups(const Sm90Argument &argument) {
  const FrameAttention &op = argument.attention.op;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarpLanes, head = static_cast<int>(blockIdx.y);
  const int first_row = static_cast<int>(blockIdx.x) * kAttentionRows, tokens = static_cast<int>(op.tokens);
  const int first_frame = first_row / tokens;
  const int frames = (min(first_row + kAttentionRows, argument.attention.rows) - 1) / tokens - first_frame + 1;
  const Sm90Shared shared(turned_steps(argument.attention.turned_chunks), frames);
  if (thread == 0) {
    for (int stage = 0; stage < kSm90Stages; ++stage) {
      for (Barrier *full : {shared.keys_full(stage), shared.values_full(stage), shared.page_full(stage)}) init_barrier(full, 1);
      for (Barrier *free : {shared.keys_free(stage), shared.values_free(stage), shared.page_free(stage)}) {
        init_barrier(free, kSm90RowThreads / kWarpLanes);
      }
    }
    publish_barriers();
  }
  sync_block();
  if (warp < kWarpgroupThreads / kWarpLanes) {
    give_registers_back<kSm90CopyRegisters>();
    if (thread == 0) copy_tiles(argument, shared, head);
    if (warp == 1) announce_pages(argument.attention, shared, head, first_frame, frames, thread % kWarpLanes);
  } else {
    take_registers<kSm90RowRegisters>();
    Sm90Rows<Element, Probe>(argument.attention, shared, head, first_row, first_frame, thread - kWarpgroupThreads).run();
  }
}

template <class Element, bool Probe>
__global__ void __launch_bounds__(kSm90Threads, 1) frame_attention_sm90_kernel(const __grid_constant__ Sm90Argument argument) {
  if constexpr (kArchitecture == 0 || runs_on_warpgroups(kArchitecture, kSm90Dim)) {
    attend_on_warpgroups<Element, Probe>(argument);
  }
}

}  // namespace lolrt::cuda
