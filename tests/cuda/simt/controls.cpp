// How tests speak to the emulator in liblolrt_cuda.so.
#include "runtime.h"
#include "simt.h"

#include "lolrt/lolrt.h"

using namespace lolrt::simt;

extern "C" {

LOLRT_API void lolrt_simt_settings(uint64_t seed, int architecture, int multiprocessors, int device, int last_blocks) {
  settings() = {seed, architecture, multiprocessors, device, last_blocks};
}

// As in runtime.h.
LOLRT_API void lolrt_simt_restart_runtime(int device, int failing_call, int error) {
  restart_runtime(device, failing_call, error);
}
LOLRT_API int lolrt_simt_notes(Note *notes, int most) { return read_notes(notes, most); }
LOLRT_API int lolrt_simt_last_error() { return last_error(); }
LOLRT_API void lolrt_simt_leave_error(int error) { leave_error(error); }

LOLRT_API void lolrt_simt_buffers(const void *const *starts, const uint64_t *bytes, int count) {
  clear_buffers();
  for (int i = 0; i < count; ++i) add_buffer(starts[i], bytes[i]);
}

// NULL: the emulator again.
LOLRT_API void lolrt_simt_runner(Runner runs) { runner() = runs; }

// A launch that a runner has kept, now; what was wrong, or NULL.
LOLRT_API const char *lolrt_simt_run(const Launch *launch) { return run(*launch); }

// As in Counts, since the last call.
LOLRT_API void lolrt_simt_counts(Counts *out) {
  *out = counts();
  counts() = {};
}
}
