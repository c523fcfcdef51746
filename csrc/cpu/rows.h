// Work on tensors row by row.
#pragma once

#include "core/threads.h"
#include "cpu/tuning.h"

#include <cstdint>

namespace lolrt {
namespace {

// Runs body(frame, token) for every row of an op on [frames, tokens, channels]; a task is a few rows.
template <class Op, class Body>
void parallel_rows(const Op &op, const Body &body) {
  const int64_t rows = op.frames * op.tokens;
  const int64_t rows_per_task = op.channels < kRowTaskElements ? kRowTaskElements / op.channels : 1;
  parallel_for((rows + rows_per_task - 1) / rows_per_task, lolrt_threads(), [&](int64_t task, int32_t) {
    const int64_t first = task * rows_per_task;
    const int64_t end = first + rows_per_task < rows ? first + rows_per_task : rows;
    for (int64_t row = first; row < end; ++row) body(row / op.tokens, row % op.tokens);
  });
}

}  // namespace
}  // namespace lolrt
