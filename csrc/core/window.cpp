#include "core/window.h"

#include "core/checks.h"
#include "core/status.h"

#include <algorithm>
#include <cinttypes>

using namespace lolrt;

namespace lolrt {
namespace {

constexpr int64_t kMaxPages = INT32_MAX;
constexpr int64_t kMaxFrame = INT64_MAX / 2;  // so that the sum of a frame and a chunk never overflows

int32_t acquire(lolrt_pool &pool) {
  const auto page = std::find(pool.holders.begin(), pool.holders.end(), 0);
  if (page == pool.holders.end()) fail(LOLRT_OUT_OF_MEMORY, "pool_acquire: all %zu pages are taken", pool.holders.size());
  *page = 1;
  --pool.free;
  return static_cast<int32_t>(page - pool.holders.begin());
}

void release(lolrt_pool &pool, int32_t page) {
  if (--pool.holders[page] == 0) ++pool.free;
}

void check_taken(const char *operation, const lolrt_pool *pool, int32_t page) {
  if (pool == nullptr) fail(LOLRT_INVALID_ARGUMENT, "%s: pool is NULL", operation);
  if (page < 0 || page >= static_cast<int64_t>(pool->holders.size()) || pool->holders[page] == 0) {
    fail(LOLRT_INVALID_ARGUMENT, "%s: page %d of %zu is not taken", operation, page, pool->holders.size());
  }
}

// Fails unless the pool can give `needed` pages once `returned` more have come back to it.
void check_pages(const char *operation, const lolrt_pool &pool, int64_t needed, int64_t returned) {
  if (needed > pool.free + returned) {
    fail(LOLRT_OUT_OF_MEMORY, "%s: needs %" PRId64 " pages, the pool of %zu has %" PRId64 " free", operation, needed - returned,
         pool.holders.size(), pool.free);
  }
}

void check_frame(const char *operation, int64_t frame) {
  if (frame < -kMaxFrame || frame > kMaxFrame) {
    fail(LOLRT_INVALID_ARGUMENT, "%s: frame %" PRId64 " is beyond +-2^62", operation, frame);
  }
}

void advance(lolrt_window &window, int64_t first_frame, int64_t frames) {
  check_frame("window_advance", first_frame);
  if (frames < 1 || frames > window.sink_frames + window.recent_frames) {
    fail(LOLRT_INVALID_ARGUMENT, "window_advance: a chunk of %" PRId64 " frames does not fit a window of %" PRId64 " + %" PRId64,
         frames, window.sink_frames, window.recent_frames);
  }
  const int64_t end = first_frame + frames;
  if (window.started && end == window.next_frame && frames <= static_cast<int64_t>(window.entries.size()) &&
      (window.entries.end() - frames)->frame == first_frame) {
    return;  // the newest chunk again
  }
  if (window.started && first_frame != window.next_frame) {
    fail(LOLRT_INVALID_ARGUMENT,
         "window_advance: the chunk starts at frame %" PRId64 ", expected %" PRId64 ": frames follow one another", first_frame,
         window.next_frame);
  }
  const int64_t start = window.started ? window.first_frame : first_frame;
  const int64_t new_recent = std::min(frames, std::max<int64_t>(0, end - (start + window.sink_frames)));
  if (new_recent > window.recent_frames) {
    fail(LOLRT_INVALID_ARGUMENT, "window_advance: %" PRId64 " frames of the chunk are no sinks, but recent_frames is %" PRId64,
         new_recent, window.recent_frames);
  }
  const auto leaves = [&](const lolrt_window::Entry &entry) {
    return entry.frame >= start + window.sink_frames && entry.frame < end - window.recent_frames;
  };
  const auto frees = [&](const lolrt_window::Entry &entry) { return leaves(entry) && window.pool->holders[entry.page] == 1; };
  check_pages("window_advance", *window.pool, frames, std::count_if(window.entries.begin(), window.entries.end(), frees));

  window.entries.reserve(window.entries.size() + frames);  // from here on nothing fails
  for (const auto &entry : window.entries) {
    if (leaves(entry)) release(*window.pool, entry.page);
  }
  window.entries.erase(std::remove_if(window.entries.begin(), window.entries.end(), leaves), window.entries.end());
  for (int64_t frame = first_frame; frame < end; ++frame) window.entries.push_back({frame, acquire(*window.pool)});
  window.started = true;
  window.first_frame = start;
  window.next_frame = end;
}

void restore(lolrt_window &window, const int64_t *frames, int64_t size) {
  if (window.started) fail(LOLRT_INVALID_ARGUMENT, "window_restore: the window already holds frames; restore into a new one");
  if (size < 1 || frames == nullptr) fail(LOLRT_INVALID_ARGUMENT, "window_restore: no frames given");
  if (size > window.sink_frames + window.recent_frames) {
    fail(LOLRT_INVALID_ARGUMENT, "window_restore: %" PRId64 " frames do not fit a window of %" PRId64 " + %" PRId64, size,
         window.sink_frames, window.recent_frames);
  }
  // A window holds its sinks without a gap, and then the newest frames without a gap. Any other saved state is invalid.
  const int64_t sinks = std::min(size, window.sink_frames);
  const int64_t last = frames[size - 1];
  check_frame("window_restore", frames[0]);
  check_frame("window_restore", last);
  for (int64_t i = 0; i < size; ++i) {
    const int64_t expected = i < sinks ? frames[0] + i : last - (size - 1 - i);
    if (frames[i] != expected || (i >= sinks && i > 0 && frames[i] <= frames[i - 1])) {
      fail(LOLRT_INVALID_ARGUMENT,
           "window_restore: frames[%" PRId64 "] is %" PRId64 "; expected %" PRId64
           " (sinks, then the newest frames, each without a gap)",
           i, frames[i], expected);
    }
  }
  const int64_t recent = size - sinks;
  if (recent < window.recent_frames && sinks > 0 && recent > 0 && frames[sinks] != frames[sinks - 1] + 1) {
    fail(LOLRT_INVALID_ARGUMENT,
         "window_restore: %" PRId64 " recent frames after a gap; a window with recent_frames = %" PRId64 " would hold more",
         recent, window.recent_frames);
  }
  check_pages("window_restore", *window.pool, size, 0);

  window.entries.reserve(size);  // from here on nothing fails
  for (int64_t i = 0; i < size; ++i) window.entries.push_back({frames[i], acquire(*window.pool)});
  window.started = true;
  window.first_frame = frames[0];
  window.next_frame = last + 1;
}

}  // namespace
}  // namespace lolrt

lolrt_status lolrt_pool_create(int64_t pages, lolrt_pool **pool) {
  return guarded([&] {
    if (pages < 1 || pages > kMaxPages || pool == nullptr) {
      fail(LOLRT_INVALID_ARGUMENT, "pool_create: pages is %" PRId64 "; expected 1 to %" PRId64, pages, kMaxPages);
    }
    *pool = new lolrt_pool{std::vector<int32_t>(pages), pages};
  });
}

void lolrt_pool_destroy(lolrt_pool *pool) { delete pool; }

lolrt_status lolrt_pool_acquire(lolrt_pool *pool, int32_t *page) {
  return guarded([&] {
    if (pool == nullptr || page == nullptr) fail(LOLRT_INVALID_ARGUMENT, "pool_acquire: a pointer is NULL");
    *page = acquire(*pool);
  });
}

lolrt_status lolrt_pool_retain(lolrt_pool *pool, int32_t page) {
  return guarded([&] {
    check_taken("pool_retain", pool, page);
    if (pool->holders[page] == INT32_MAX) fail(LOLRT_INVALID_ARGUMENT, "pool_retain: page %d has too many holders", page);
    ++pool->holders[page];
  });
}

lolrt_status lolrt_pool_release(lolrt_pool *pool, int32_t page) {
  return guarded([&] {
    check_taken("pool_release", pool, page);
    release(*pool, page);
  });
}

int64_t lolrt_pool_free_pages(const lolrt_pool *pool) { return pool ? pool->free : 0; }

lolrt_status lolrt_window_create(lolrt_pool *pool, int64_t sink_frames, int64_t recent_frames, lolrt_window **window) {
  return guarded([&] {
    if (pool == nullptr || window == nullptr) fail(LOLRT_INVALID_ARGUMENT, "window_create: a pointer is NULL");
    if (sink_frames < 0 || sink_frames > kMaxPages || recent_frames < 1 || recent_frames > kMaxPages) {
      fail(LOLRT_INVALID_ARGUMENT,
           "window_create: sink_frames is %" PRId64 " and recent_frames %" PRId64 "; expected at least 0 and 1", sink_frames,
           recent_frames);
    }
    *window = new lolrt_window{pool, sink_frames, recent_frames, false, 0, 0, {}};
  });
}

void lolrt_window_destroy(lolrt_window *window) {
  if (window == nullptr) return;
  for (const auto &entry : window->entries) release(*window->pool, entry.page);
  delete window;
}

lolrt_status lolrt_window_advance(lolrt_window *window, int64_t first_frame, int64_t frames) {
  return guarded([&] {
    if (window == nullptr) fail(LOLRT_INVALID_ARGUMENT, "window_advance: window is NULL");
    advance(*window, first_frame, frames);
  });
}

int64_t lolrt_window_size(const lolrt_window *window) { return window ? static_cast<int64_t>(window->entries.size()) : 0; }

lolrt_status lolrt_window_read(const lolrt_window *window, int32_t *pages, int64_t *frames, int64_t size) {
  return guarded([&] {
    if (window == nullptr || (size > 0 && (pages == nullptr || frames == nullptr))) {
      fail(LOLRT_INVALID_ARGUMENT, "window_read: a pointer is NULL");
    }
    if (size != lolrt_window_size(window)) {
      fail(LOLRT_INVALID_ARGUMENT, "window_read: size is %" PRId64 ", the window holds %" PRId64 " pages", size,
           lolrt_window_size(window));
    }
    for (const auto &entry : window->entries) {
      *pages++ = entry.page;
      *frames++ = entry.frame;
    }
  });
}

lolrt_status lolrt_window_restore(lolrt_window *window, const int64_t *frames, int64_t size) {
  return guarded([&] {
    if (window == nullptr) fail(LOLRT_INVALID_ARGUMENT, "window_restore: window is NULL");
    restore(*window, frames, size);
  });
}

lolrt_status lolrt_page_elements(int32_t device_type, lolrt_dtype dtype, int64_t tokens, int64_t heads, int64_t dim,
                                 int64_t *elements) {
  return guarded([&] {
    if (device_type != LOLRT_DEVICE_CPU && device_type != LOLRT_DEVICE_CUDA) {
      fail(LOLRT_UNSUPPORTED, "page_elements: device_type is %d; there are pages for the CPU (1) and CUDA (2)", device_type);
    }
    const DType type = page_type("page_elements: dtype", device_type, dtype);
    check_page_sizes("page_elements", tokens, heads, dim);
    if (type == DType::float8_e4m3fn && dim != 128) {
      fail(LOLRT_UNSUPPORTED, "page_elements: dim is %" PRId64 "; pages of float8_e4m3fn have 128", dim);
    }
    if (elements == nullptr) fail(LOLRT_INVALID_ARGUMENT, "page_elements: elements is NULL");
    *elements = PageLayout(device_type, type, tokens, heads, dim).elements;
  });
}
