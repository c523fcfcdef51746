// What goes wrong in the CUDA half, as an outcome: no exception crosses from one library to the other.
#pragma once

#include "core/cuda.h"

#include <cstdarg>
#include <cstdio>

namespace lolrt::cuda {

constexpr CudaOutcome kDone{LOLRT_OK, ""};

// The text (printf style) is in a buffer of the calling thread.
__attribute__((format(printf, 2, 3))) inline CudaOutcome problem(lolrt_status status, const char *format, ...) {
  thread_local char text[512];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  return {status, text};
}

inline bool aligned(int64_t alignment, const void *data) { return reinterpret_cast<uintptr_t>(data) % alignment == 0; }

// Whether rows that start at `data` and are `strides` elements of so many bytes apart are all aligned to 16 bytes.
template <class... Strides>
bool rows_aligned(int64_t element_bytes, const void *data, Strides... strides) {
  return aligned(16, data) && ((strides * element_bytes % 16 == 0) && ...);
}

inline bool rows_aligned(const HeadRows &rows) { return rows_aligned(2, rows.data, rows.frame, rows.token, rows.head); }

}  // namespace lolrt::cuda
