// kv_write to pages of int8, for one instruction set: x' of kv_write.h, rounded to bytes.
//
//   K   code = 128 + round((x' - middle) / scale), a byte; middle and scale of each channel of a head, over the page's tokens
//   V   code = round(v / scale), a signed byte; scale of each channel of a head
//
// The scales follow from the extremes of a channel, which takes three rounds:
//   blocks   of 16 tokens: the extremes of each channel, where the block's codes will be
//   heads    the extremes of these; the scales
//   blocks   x' once more, in bytes
// So what is kept from one to the next is in the page itself, and no order of tasks shows in the result.
#pragma once

#include "cpu/bytes.h"
#include "cpu/kv_write.h"

#include <algorithm>
#include <limits>

namespace lolrt {
namespace {

template <class Isa, class T>
class Int8KvWriteKernel : public KvWriteKernel<Isa, T> {
  using Base = KvWriteKernel<Isa, T>;
  using Base::kBlock;
  using Base::kChannels;
  using Base::kMaxChannels;
  using Base::layout_;
  using Base::op_;
  using Base::W;
  using typename Base::Angles;
  using typename Base::Block;
  using Vec = typename Isa::Vec;
  using Row = T[kMaxChannels];
  static constexpr int64_t kWord = 4;

 public:
  static void run(const KvWrite &op) {
    const Int8KvWriteKernel kernel(op);
    kernel.for_blocks([&](const Block &block, const Angles &angles) {
      if (op.q.data) kernel.write_queries(block, angles);
      kernel.find_extremes(block, angles);
    });
    parallel_for(op.frames * op.heads, lolrt_threads(),
                 [&](int64_t task, int32_t) { kernel.write_scales(task / op.heads, task % op.heads); });
    kernel.for_blocks([&](const Block &block, const Angles &angles) { kernel.write_codes(block, angles); });
  }

 private:
  using Base::Base;

  struct Head {
    uint8_t *keys, *values;
    float *key_scale, *middle, *value_scale;  // [dim]
  };

  Head head_of(int64_t frame, int64_t head) const {
    auto *page = static_cast<uint8_t *>(op_.pages) + op_.page_table[frame] * op_.page_stride;
    auto *scales = reinterpret_cast<float *>(page + layout_.scales) + head * layout_.head_scales;
    return {page + head * layout_.key_head, page + layout_.values + head * layout_.value_head, scales, scales + op_.dim,
            scales + 2 * op_.dim};
  }

  // The extremes of a block's K: least and largest, [2][dim]; and of its V, the largest magnitude of 16 channels.
  float *key_extremes(const Head &head, int64_t token) const {
    return reinterpret_cast<float *>(head.keys + token * layout_.key_row);
  }
  float *value_extremes(const Head &head, int64_t token, int64_t channel) const {
    return reinterpret_cast<float *>(head.values + channel / kChannels * layout_.value_block + token * kChannels);
  }

  static Vec load(const T *from, int64_t lanes) {
    return lanes >= W ? Isa::load(from) : Isa::load_n(from, static_cast<int>(lanes));
  }
  static void store(float *to, Vec x, int64_t lanes) {
    if (lanes >= W) {
      Isa::store(to, x);
    } else {
      Isa::store_n(to, x, static_cast<int>(lanes));
    }
  }
  static Vec magnitude(Vec x) { return Isa::max(x, Isa::sub(Isa::zero(), x)); }

  void find_extremes(const Block &block, const Angles &angles) const {
    float scale[kBlock];
    for (int t = 0; t < block.tokens; ++t) scale[t] = this->inverse_rms(op_.k, op_.k_weight, block, t);
    alignas(64) Row rows[kBlock];
    for (int64_t index = 0; index < op_.heads; ++index) {
      const Head head = head_of(block.frame, index);
      this->project(op_.k, op_.k_weight, block, index, scale, angles, [&](int t) { return rows[t]; });
      float *least = key_extremes(head, block.first), *most = least + op_.dim;
      for (int64_t c = 0; c < op_.dim; c += W) {
        const int64_t lanes = op_.dim - c;
        Vec low = load(rows[0] + c, lanes), high = low, magnitudes = Isa::zero();
        Vec not_finite = Isa::zero(), v_not_finite = Isa::zero();  // 0, or NaN where a number is not finite
        for (int t = 0; t < block.tokens; ++t) {
          const Vec x = load(rows[t] + c, lanes);
          low = Isa::sub(Isa::zero(), Isa::max(Isa::sub(Isa::zero(), low), Isa::sub(Isa::zero(), x)));
          high = Isa::max(high, x);
          not_finite = Isa::multiply_add(x, Isa::zero(), not_finite);
          const Vec v = load(op_.v.template row<const T>(block.frame, block.first + t, index) + c, lanes);
          magnitudes = Isa::max(magnitudes, magnitude(v));
          v_not_finite = Isa::multiply_add(v, Isa::zero(), v_not_finite);
        }
        store(least + c, Isa::add(low, not_finite), lanes);
        store(most + c, Isa::add(high, not_finite), lanes);
        store(value_extremes(head, block.first, c) + c % kChannels, Isa::add(magnitudes, v_not_finite), lanes);
      }
    }
  }

  // Scales of what is not finite are NaN, and with them all that is computed with the codes.
  void write_scales(int64_t frame, int64_t index) const {
    const Head head = head_of(frame, index);
    for (int64_t c = 0; c < op_.dim; ++c) {
      float least = std::numeric_limits<float>::infinity(), most = -least, value = 0.0f, not_finite = 0.0f, v_not_finite = 0.0f;
      for (int64_t token = 0; token < op_.tokens; token += kBlock) {
        const float *keys = key_extremes(head, token);
        least = std::min(least, keys[c]);
        most = std::max(most, keys[op_.dim + c]);
        not_finite += keys[c] * 0.0f;
        const float magnitude = value_extremes(head, token, c)[c % kChannels];
        value = std::max(value, magnitude);
        v_not_finite += magnitude * 0.0f;
      }
      head.middle[c] = (0.5f * most + 0.5f * least) + not_finite;
      head.key_scale[c] = std::max((0.5f * most - 0.5f * least) / kMostCode, kLeastScale) + not_finite;
      head.value_scale[c] = std::max(value / kMostCode, kLeastScale) + v_not_finite;
    }
  }

  void write_codes(const Block &block, const Angles &angles) const {
    float scale[kBlock];
    for (int t = 0; t < block.tokens; ++t) scale[t] = this->inverse_rms(op_.k, op_.k_weight, block, t);
    alignas(64) Row rows[kBlock];
    alignas(64) typename Base::Stage stage;  // of codes, as words
    for (int64_t index = 0; index < op_.heads; ++index) {
      const Head head = head_of(block.frame, index);
      this->project(op_.k, op_.k_weight, block, index, scale, angles, [&](int t) { return rows[t]; });
      for (int t = 0; t < block.tokens; ++t) {
        stage[t][layout_.key_row / kWord - 1] = 0.0f;  // the channels beyond dim, up to a whole word
        round(rows[t], head.middle, head.key_scale, kZeroCode, reinterpret_cast<uint8_t *>(stage[t]));
      }
      this->store_words(stage, block, layout_.key_row / kWord,
                        reinterpret_cast<float *>(head.keys + block.first * layout_.key_row));
      for (int t = 0; t < block.tokens; ++t) {
        round(op_.v.template row<const T>(block.frame, block.first + t, index), nullptr, head.value_scale, 0.0f,
              reinterpret_cast<uint8_t *>(stage[t]));
      }
      write_values(stage, block, head.values + block.first * kChannels);
    }
  }

  // zero + round((x - middle) / scale), ties to even, for a row of channels; middle may be NULL.
  void round(const T *x, const float *middle, const float *scale, float zero, uint8_t *codes) const {
    // Adding 1.5 * 2^23 leaves the rounded integer in the low bits.
    const Vec magic = Isa::set(0x1.8p23f + zero);
    for (int64_t c = 0; c < op_.dim; c += W) {
      const int64_t lanes = op_.dim - c;
      const auto floats = [lanes](const float *from) {
        return lanes >= W ? Isa::load(from) : Isa::load_n(from, static_cast<int>(lanes));
      };
      Vec value = load(x + c, lanes);
      if (middle) value = Isa::sub(value, floats(middle + c));
      const Vec code = Isa::add(Isa::div(value, floats(scale + c)), magic);
      if (lanes >= W) {
        Isa::store_bytes(codes + c, code);
      } else {
        Isa::store_bytes_n(codes + c, code, static_cast<int>(lanes));
      }
    }
  }

  // [tokens][dim] codes to [dim / 16][tokens / 4][16][4].
  void write_values(const typename Base::Stage &stage, const Block &block, uint8_t *to) const {
    for (int64_t c = 0; c < op_.dim; c += kChannels, to += layout_.value_block) {
      const int64_t count = std::min(kChannels, op_.dim - c);
      for (int t = 0; t < block.tokens; ++t) {
        const auto *codes = reinterpret_cast<const uint8_t *>(stage[t]) + c;
        uint8_t *word = to + t / kWord * kWord * kChannels + t % kWord;
        for (int64_t i = 0; i < count; ++i) word[kWord * i] = codes[i];
      }
    }
  }
};

}  // namespace
}  // namespace lolrt
