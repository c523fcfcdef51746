// How tests see and steer the runtime of cuda_runtime.h.
#pragma once

#include "simt.h"

namespace lolrt::simt {

// A call and its arguments; zeros for those that it does not have.
struct Note {
  char call[32];
  const void *kernel, *stream;
  Index blocks;
  uint32_t threads, shared_bytes;
  int32_t device;  // the current one
  int32_t value;   // that was set
  int32_t error;   // that it returned
};

// Forgets calls, errors and what kernels have been permitted, and makes this device current. The call with this number, counted
// from 1, fails with this error; with 0, none.
void restart_runtime(int device, int failing_call, int error);

// The calls so far, the oldest first; returns their number.
int read_notes(Note *notes, int most);

// The error that cudaGetLastError would return; and one that other code has left.
int last_error();
void leave_error(int error);

// Counts as a call; true if it is the one that must fail. For calls of the driver.
bool call_fails(const char *call);

}  // namespace lolrt::simt
