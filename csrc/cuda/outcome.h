// What goes wrong in the CUDA half, as an outcome: no exception crosses from one library to the other.
#pragma once

#include "core/cuda.h"

namespace lolrt::cuda {

constexpr CudaOutcome kDone{LOLRT_OK, ""};

// The text (printf style) is in a buffer of the calling thread.
CudaOutcome problem(lolrt_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

inline CudaOutcome launched(const char *operation, const char *error) {
  return error == nullptr ? kDone : problem(LOLRT_INTERNAL, "%s: CUDA: %s", operation, error);
}

inline bool aligned(int64_t alignment, const void *data) { return reinterpret_cast<uintptr_t>(data) % alignment == 0; }

// Whether rows that start at `data` and are `strides` elements of so many bytes apart are all aligned to 16 bytes.
template <class... Strides>
bool rows_aligned(int64_t element_bytes, const void *data, Strides... strides) {
  return aligned(16, data) && ((strides * element_bytes % 16 == 0) && ...);
}

inline bool rows_aligned(const HeadRows &rows) { return rows_aligned(2, rows.data, rows.frame, rows.token, rows.head); }

}  // namespace lolrt::cuda
