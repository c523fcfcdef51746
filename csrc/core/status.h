// Failures inside the library are C++ exceptions. At the C ABI `guarded` turns them into a status and a text.
#pragma once

#include "lolrt/lolrt.h"

#include <new>

namespace lolrt {

// Thrown by `fail`; its text is in the calling thread's buffer.
struct Failure {
  lolrt_status status;
};

// Writes the calling thread's error text (printf style).
void set_error_text(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Writes the error text and throws Failure{status}.
[[noreturn]] void fail(lolrt_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

template <class Body>
lolrt_status guarded(Body &&body) noexcept {
  try {
    body();
    return LOLRT_OK;
  } catch (const Failure &failure) {
    return failure.status;
  } catch (const std::bad_alloc &) {
    set_error_text("out of memory");
    return LOLRT_OUT_OF_MEMORY;
  } catch (...) {
    set_error_text("internal error: an unexpected C++ exception; please report it");
    return LOLRT_INTERNAL;
  }
}

}  // namespace lolrt
