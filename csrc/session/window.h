// The pages of a session's window, and the positions of its frames: as in lolrt/engine/kv_window.py and lolrt/positions/rope.py.
#pragma once

#include "package.h"

#include "lolrt/lolrt.h"

namespace lolrt::session {

// The pages that a chunk attends to: those of earlier frames, oldest first, then its own.
struct ChunkPages {
  std::vector<int64_t> frames;
  std::vector<int32_t> pages;
  int64_t own;  // how many are its own

  at::ArrayRef<int32_t> own_pages() const { return at::ArrayRef<int32_t>(pages).slice(pages.size() - static_cast<size_t>(own)); }
};

class Window {
 public:
  explicit Window(const Package &package);
  ~Window();
  Window(const Window &) = delete;

  // Gives the next chunk its pages.
  ChunkPages advance(int64_t first_frame);
  // The chunks in the window from its frame `first` on, oldest first, each with the pages that it would have as the newest.
  std::vector<ChunkPages> chunks(int64_t first) const;
  // Puts saved frames into an empty window.
  void restore(const std::vector<int64_t> &frames);
  // All frames in the window and their pages.
  ChunkPages read() const;

  // What the passes of a chunk get of its pages:
  //   page_table   int32 [1, all pages], of which the rest are absent
  //   write_table  int32 [chunk frames]: where the chunk's own K and V go
  //   rotation     float32 [1 or layers, 1, all pages, frames, heads, pairs, 2]
  std::vector<at::Tensor> tables(const ChunkPages &pages) const;

 private:
  std::vector<int64_t> offsets(const ChunkPages &pages) const;
  at::Tensor rotation(const ChunkPages &pages) const;

  const Package &package_;
  lolrt_pool *pool_ = nullptr;
  lolrt_window *window_ = nullptr;
};

}  // namespace lolrt::session
