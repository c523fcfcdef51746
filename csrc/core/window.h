// Which page of a pool holds which frame of a stream. Only bookkeeping: no tensor is accessed.
#pragma once

#include "lolrt/lolrt.h"

#include <cstdint>
#include <vector>

struct lolrt_pool {
  std::vector<int32_t> holders;  // of each page; none: it is free
  int64_t free = 0;
};

struct lolrt_window {
  struct Entry {
    int64_t frame;
    int32_t page;
  };

  lolrt_pool *pool;
  int64_t sink_frames;
  int64_t recent_frames;
  bool started = false;
  int64_t first_frame = 0;     // where the stream started
  int64_t next_frame = 0;      // the frame that must come next
  std::vector<Entry> entries;  // oldest first; never grows beyond sink_frames + recent_frames
};
