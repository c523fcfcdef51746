#include "window.h"

#include "error.h"
#include "views.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

namespace lolrt::session {

Window::Window(const Package &package) : package_(package) {
  require(lolrt_pool_create(package.pages_size[1], &pool_));
  const lolrt_status status = lolrt_window_create(pool_, package.sink_frames, package.recent_frames, &window_);
  if (status != LOLRT_OK) lolrt_pool_destroy(pool_);
  require(status);
}

Window::~Window() {
  lolrt_window_destroy(window_);
  lolrt_pool_destroy(pool_);
}

ChunkPages Window::advance(int64_t first_frame) {
  require(lolrt_window_advance(window_, first_frame, package_.chunk_frames));
  return read();
}

void Window::restore(const std::vector<int64_t> &frames) {
  if (!frames.empty()) require(lolrt_window_restore(window_, frames.data(), static_cast<int64_t>(frames.size())));
}

ChunkPages Window::read() const {
  const auto size = static_cast<size_t>(lolrt_window_size(window_));
  ChunkPages all{std::vector<int64_t>(size), std::vector<int32_t>(size), package_.chunk_frames};
  if (size > 0) require(lolrt_window_read(window_, all.pages.data(), all.frames.data(), static_cast<int64_t>(size)));
  return all;
}

std::vector<ChunkPages> Window::chunks(int64_t first) const {
  const ChunkPages all = read();
  std::vector<ChunkPages> found;
  // A package's windows are whole chunks.
  for (auto end = first + package_.chunk_frames; end <= static_cast<int64_t>(all.frames.size()); end += package_.chunk_frames)
    found.push_back({{all.frames.begin(), all.frames.begin() + end}, {all.pages.begin(), all.pages.begin() + end}, all.own});
  return found;
}

std::vector<at::Tensor> Window::tables(const ChunkPages &pages) const {
  const at::Tensor table = at::full({1, package_.sink_frames + package_.recent_frames}, -1, at::kInt);
  std::copy(pages.pages.begin(), pages.pages.end(), table.data_ptr<int32_t>());
  return {table, at::tensor(pages.own_pages(), at::kInt), rotation(pages)};
}

// Query position minus page position, [pages, frames]; as `Rope.offsets`.
std::vector<int64_t> Window::offsets(const ChunkPages &pages) const {
  std::vector<int64_t> at = pages.frames;
  const auto size = static_cast<int64_t>(at.size());
  const int64_t sinks = std::min(package_.sink_frames, size - pages.own);
  if (package_.positions == "window") {
    for (int64_t i = 0; i < size; ++i) at[i] = i;
  } else if (package_.positions == "anchored") {
    const int64_t reach = std::max(package_.anchor_frames, size - 1);
    const int64_t moved = std::max<int64_t>(0, at[size - 1] - at[0] - reach);
    for (int64_t i = 0; i < sinks; ++i) at[i] += moved;
  }
  std::vector<int64_t> found;
  for (int64_t page = 0; page < size; ++page)
    for (int64_t frame = size - pages.own; frame < size; ++frame) found.push_back(at[frame] - at[page]);
  return found;
}

at::Tensor Window::rotation(const ChunkPages &pages) const {
  const auto &turns = package_.increments;
  const int64_t tables = turns.size(0), heads = turns.size(1), pairs = turns.size(2), size = pages.frames.size();
  std::vector<int64_t> offset = offsets(pages);
  const at::Tensor all = at::zeros({tables, 1, package_.sink_frames + package_.recent_frames, pages.own, heads, pairs, 2});
  for (int64_t i = 0; i < tables; ++i) {
    const at::Tensor own = all[i][0].narrow(0, 0, size);
    View phases(turns[i]), out(own);
    phases.tensor().dtype = {LOLRT_CODE_UINT, 64, 1};
    int64_t shape[] = {size, pages.own};
    const lolrt_tensor by{offset.data(), {LOLRT_DEVICE_CPU, 0}, 2, {LOLRT_CODE_INT, 64, 1}, shape, nullptr, 0};
    require(lolrt_rotation_table(&phases.tensor(), &by, &out.tensor()));
    own.mul_(package_.amplitude);
  }
  return all;
}

}  // namespace lolrt::session
