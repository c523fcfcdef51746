#include "core/status.h"

#include <cstdarg>
#include <cstdio>

namespace lolrt {
namespace {

thread_local char error_text[1024];  // a fixed buffer: reporting "out of memory" must not allocate

}  // namespace

void set_error_text(const char *format, ...) {
  va_list args;
  va_start(args, format);
  std::vsnprintf(error_text, sizeof error_text, format, args);
  va_end(args);
}

void fail(lolrt_status status, const char *format, ...) {
  va_list args;
  va_start(args, format);
  std::vsnprintf(error_text, sizeof error_text, format, args);
  va_end(args);
  throw Failure{status};
}

}  // namespace lolrt

extern "C" {

int32_t lolrt_abi_version(void) { return LOLRT_ABI_VERSION; }
const char *lolrt_version(void) { return LOLRT_VERSION; }
const char *lolrt_last_error(void) { return lolrt::error_text; }

}  // extern "C"
