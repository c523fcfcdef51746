// The session library's C ABI (lolrt/session.h): exceptions become a status and a text.
#include "lolrt/session.h"

#include "error.h"
#include "stream.h"
#include "views.h"

#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <new>
#include <optional>

using lolrt::session::Chunk;
using lolrt::session::expect;
using lolrt::session::Failure;
using lolrt::session::Stream;
using lolrt::session::View;

struct lolrt_session {
  Stream stream;
  // What the newest chunk's views refer to.
  Chunk chunk{};
  std::optional<View> latents{}, frames{};
};

namespace {

thread_local std::string last_error = "no call of this thread has failed";

lolrt_status failed(lolrt_status status, const char *text) noexcept {
  try {
    last_error = text;
  } catch (const std::bad_alloc &) {
  }
  return status;
}

template <class Work>
lolrt_status guarded(Work work) noexcept {
  try {
    const c10::InferenceMode no_autograd;
    work();
    return LOLRT_OK;
  } catch (const Failure &failure) {
    return failed(failure.status, failure.what());
  } catch (const std::bad_alloc &) {
    return failed(LOLRT_OUT_OF_MEMORY, "out of memory");
  } catch (const c10::Error &error) {
    return failed(LOLRT_INTERNAL, error.what_without_backtrace());
  } catch (const std::exception &error) {
    return failed(LOLRT_INTERNAL, error.what());
  }
}

}  // namespace

const char *lolrt_session_last_error(void) { return last_error.c_str(); }

lolrt_status lolrt_session_open(const char *package, const lolrt_tensor *prompt, uint64_t seed, lolrt_session **session) {
  return guarded([&] {
    expect(package != nullptr && session != nullptr, "package or session is NULL");
    *session = nullptr;
    *session = new lolrt_session{Stream(package, prompt, seed)};
  });
}

void lolrt_session_close(lolrt_session *session) { delete session; }

lolrt_status lolrt_session_next_chunk(lolrt_session *session, lolrt_chunk *chunk) {
  return guarded([&] {
    expect(session != nullptr && chunk != nullptr, "session or chunk is NULL");
    session->chunk = session->stream.next_chunk();
    session->latents.emplace(session->chunk.latents);
    session->frames.emplace(session->chunk.frames);
    *chunk = {session->chunk.first_frame, session->latents->tensor(), session->frames->tensor()};
  });
}

lolrt_status lolrt_session_set_prompt(lolrt_session *session, const lolrt_tensor *prompt, lolrt_recache recache,
                                      int64_t over_chunks) {
  return guarded([&] {
    expect(session != nullptr, "session is NULL");
    session->stream.set_prompt(prompt, recache, over_chunks);
  });
}

lolrt_status lolrt_session_save(const lolrt_session *session, const char *path) {
  return guarded([&] {
    expect(session != nullptr && path != nullptr, "session or path is NULL");
    session->stream.save(path);
  });
}

lolrt_status lolrt_session_resume(const char *package, const char *snapshot, lolrt_session **session) {
  return guarded([&] {
    expect(package != nullptr && snapshot != nullptr && session != nullptr, "package, snapshot or session is NULL");
    *session = nullptr;
    *session = new lolrt_session{Stream(package, std::string(snapshot))};
  });
}
