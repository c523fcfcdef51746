// sampler_step for one instruction set.
//
//   clean = round_float32(sample - level * velocity), in float64;  out = (1 - after) * clean + after * noise, in float32
//
// Tensors: float32 [elements], each read or written once. The loops are the compiler's to vectorise: every element is its own
// sum, so that the bits are the same whatever it does.
#pragma once

#include "core/ops.h"
#include "core/threads.h"
#include "cpu/tuning.h"

#include <algorithm>
#include <cstdint>

namespace lolrt {
namespace {

template <class Isa>
struct SamplerStepKernel {
  static void run(const SamplerStep &op) {
    parallel_for((op.elements + kRowTaskElements - 1) / kRowTaskElements, lolrt_threads(), [&](int64_t task, int32_t) {
      const int64_t first = task * kRowTaskElements;
      step(op, first, std::min<int64_t>(first + kRowTaskElements, op.elements));
    });
  }

 private:
  static void step(const SamplerStep &op, int64_t first, int64_t end) {
    const double level = op.level;
    const float keep = static_cast<float>(1.0 - op.after), add = static_cast<float>(op.after);
    const float *sample = op.sample, *velocity = op.velocity, *noise = op.noise;
    float *out = op.out;
    if (noise == nullptr) {
      for (int64_t i = first; i < end; ++i) out[i] = clean(sample[i], level, velocity[i]);
    } else {
      for (int64_t i = first; i < end; ++i) out[i] = keep * clean(sample[i], level, velocity[i]) + add * noise[i];
    }
  }

  static float clean(double sample, double level, double velocity) { return static_cast<float>(sample - level * velocity); }
};

}  // namespace
}  // namespace lolrt
