// How tests see and steer the runtime of cuda_runtime.h.
#pragma once

#include "simt.h"

namespace lolrt::simt {

// A call, with what it was about; zeros where it has no such thing.
struct Note {
  char call[32];
  const void *kernel, *stream;
  Index blocks;
  uint32_t threads, shared_bytes;
  int32_t device;  // the current one
  int32_t value;   // that was set
  int32_t error;   // that it returned
};

// Forgets notes, errors and what kernels have been allowed, and makes this device current. The call of that number from now on
// fails, counted from 1; none where it is 0.
void restart_runtime(int device, int failing_call);

// Notes so far, the oldest first; how many there are.
int read_notes(Note *notes, int most);

// The error that cudaGetLastError would return; and one that somebody else has left.
int last_error();
void leave_error(int error);

// Counts as a call; true when it is the one that fails. For calls of the driver.
bool call_fails(const char *call);

}  // namespace lolrt::simt
