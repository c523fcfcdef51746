// Failures inside the session library: an exception up to the C ABI, a status and a text there.
#pragma once

#include "lolrt/session.h"

#include <cstdarg>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace lolrt::session {

struct Failure : std::runtime_error {
  Failure(lolrt_status status, const std::string &text) : std::runtime_error(text), status(status) {}
  lolrt_status status;
};

// Throws unless a condition holds that the caller is responsible for. The text is printf's.
__attribute__((format(printf, 2, 3))) inline void expect(bool holds, const char *format, ...) {
  if (holds) return;
  char text[512];
  va_list values;
  va_start(values, format);
  std::vsnprintf(text, sizeof text, format, values);
  va_end(values);
  throw Failure(LOLRT_INVALID_ARGUMENT, text);
}

// Passes on the failure of a call of liblolrt.
inline void require(lolrt_status status) {
  if (status != LOLRT_OK) throw Failure(status, lolrt_last_error());
}

}  // namespace lolrt::session
