// Gaussian noise as a function of its key: element 4 b + i of (seed, frame, step) comes from Philox block
// (b, step, frame) under the key `seed`, by the Box-Muller transform.
#include "core/philox.h"
#include "core/status.h"
#include "core/tensor.h"
#include "core/threads.h"

#include <algorithm>
#include <cmath>

using namespace lolrt;

lolrt_status lolrt_normal(uint64_t seed, int64_t frame, int32_t step, const lolrt_tensor *out) {
  return guarded([&] {
    if (out == nullptr || out->ndim < 1 || out->ndim > View::max_dims || out->shape == nullptr) {
      fail(LOLRT_INVALID_ARGUMENT, "normal: out: expected a float32 tensor of 1 to %d dimensions", View::max_dims);
    }
    // Any shape is accepted: the tensor is treated as the vector of its contiguous elements.
    constexpr int64_t most = int64_t{4} << 32;  // 4 elements per block, and block numbers have 32 bits
    int64_t count = 1;
    for (int dim = out->ndim - 1; dim >= 0; --dim) {
      const int64_t size = out->shape[dim];
      if (size < 1 || (size > 1 && out->strides && out->strides[dim] != count)) {
        fail(LOLRT_INVALID_ARGUMENT,
             "normal: out: dimension %d has size %lld and stride %lld; expected a contiguous, non-empty tensor", dim,
             static_cast<long long>(size), static_cast<long long>(out->strides ? out->strides[dim] : count));
      }
      if (size > most / count) fail(LOLRT_UNSUPPORTED, "normal: out has more than 2^34 elements");
      count *= size;
    }
    lolrt_tensor flat = *out;
    flat.ndim = 1;
    flat.shape = &count;
    flat.strides = nullptr;
    float *to = Checker("normal").output("out", &flat, DType::float32, {{"elements"}}).data<float>();

    const auto position = static_cast<uint64_t>(frame);
    constexpr int64_t task_blocks = 128;  // takes some ten microseconds
    const int64_t blocks = (count + 3) / 4;
    parallel_for((blocks + task_blocks - 1) / task_blocks, lolrt_threads(), [&](int64_t task, int32_t) {
      const int64_t begin = task * task_blocks, end = std::min(blocks, begin + task_blocks);
      for (int64_t block = begin; block < end; ++block) {
        const auto bits = philox4x32({static_cast<uint32_t>(block), static_cast<uint32_t>(step), static_cast<uint32_t>(position),
                                      static_cast<uint32_t>(position >> 32)},
                                     {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
        float draws[4];
        for (int pair = 0; pair < 2; ++pair) {
          const double uniform = (bits[2 * pair] + 1.0) * 0x1p-32;  // in (0, 1], so its logarithm is finite
          const double angle = bits[2 * pair + 1] * (0x1.921fb54442d18p+2 * 0x1p-32);
          const double radius = std::sqrt(-2.0 * std::log(uniform));
          draws[2 * pair] = static_cast<float>(radius * std::cos(angle));
          draws[2 * pair + 1] = static_cast<float>(radius * std::sin(angle));
        }
        for (int64_t i = 4 * block; i < count && i < 4 * block + 4; ++i) to[i] = draws[i - 4 * block];
      }
    });
  });
}
