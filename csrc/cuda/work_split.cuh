// Who does what of frame_attention. A tile is 128 rows of queries of one head. As many blocks run at once as the device has slots
// for; while there are tiles for all slots a block is a tile with all its pages. What is left, or everything where there are
// fewer tiles than slots, is cut: a block is some pages of a tile. Blocks come in the order of their numbers, so that whole tiles
// go through the same pages at the same time and find K and V in the L2 cache, and the cut ones fill the slots at the end.
//
// Each entry of a batch is dealt out as if it were alone, one after the other: which tiles are cut, and where, decides how their
// results are rounded, and so an entry has the bits that it has alone. The next entry's blocks fill the slots that the last one's
// cut tiles leave.
//
// A block of a tile that is cut leaves in the workspace what it has: for every row maximum, sum and the output that is neither
// divided nor rounded. attention_combine.cuh puts the parts together, in the order of their pages.
#pragma once

#include <device/element.cuh>

#include <cstdint>

namespace lolrt::cuda {

constexpr int kAttentionRows = 128;  // of a tile
// A part of few keys takes less time than to leave its result and to put it together with others.
constexpr int64_t kLeastKeys = 512;

// What a block does: pages of a tile of an entry of the batch.
struct Segment {
  int head, first_row;
  int page, pages_end;
  int part;  // where its result goes to in the workspace; -1: it is all of the tile, and goes to the output
};

// Of an entry.
struct WorkSplit {
  int head_tiles;         // of a head; tiles are counted over all heads
  int pages;              // of a tile
  int whole, cut;         // tiles; those that are cut come last
  int part_pages, parts;  // of a tile that is cut; its last part may have fewer pages

  __host__ __device__ int blocks() const { return whole + cut * parts; }

  // Where a row of a part lies in the workspace, in rows.
  __host__ __device__ int64_t part_row(int entry, int part, int row) const {
    return (static_cast<int64_t>(entry) * (cut * parts) + part) * kAttentionRows + row;
  }

  __host__ __device__ Segment segment(int block) const {
    const int number = block - whole, tile = number < 0 ? block : whole + number % cut;
    const int page = number < 0 ? 0 : number / cut * part_pages;
    const int pages_end = number < 0 || page + part_pages > pages ? pages : page + part_pages;
    return {tile / head_tiles, tile % head_tiles * kAttentionRows, page, pages_end, number < 0 ? -1 : number};
  }

  // The pages of the part that has this page of the tile; all where it is not cut.
  __host__ __device__ int part_begin(int tile, int page) const { return tile < whole ? 0 : page / part_pages * part_pages; }
  __host__ __device__ int part_end(int tile, int page) const {
    const int end = part_begin(tile, page) + part_pages;
    return tile < whole || end > pages ? pages : end;
  }
};

// Pages of which one slot does most when so many tiles are cut: parts come in order, all that are whole first.
inline int64_t last_slot_pages(int64_t tiles, int64_t pages, int64_t part_pages, int64_t slots) {
  const int64_t full = tiles * (pages / part_pages), rounds = full / slots, busy = full % slots;
  const int64_t rest = pages % part_pages, small = rest == 0 ? 0 : tiles, idle = slots - busy;
  // Slots without a part in the last round take small ones while the others do theirs.
  int64_t most = (rounds + (busy > 0)) * part_pages;
  const int64_t fit = busy > 0 ? idle * (part_pages / (rest > 0 ? rest : 1)) : 0;
  if (small > fit) most += (small - fit + slots - 1) / slots * rest;
  return most;
}

// `slots`: blocks that run at once.
inline WorkSplit split_work(int64_t head_tiles, int64_t heads, int64_t pages, int64_t page_tokens, int64_t slots) {
  const int64_t tiles = head_tiles * heads, cut = tiles % slots;
  int64_t best = pages, least = last_slot_pages(cut, pages, pages, slots);
  for (int64_t part_pages = pages - 1; part_pages > 0 && part_pages * page_tokens >= kLeastKeys; --part_pages) {
    const int64_t most = last_slot_pages(cut, pages, part_pages, slots);
    if (most < least) best = part_pages, least = most;
  }
  const bool alone = cut == 0 || best == pages;
  const auto number = [](int64_t value) { return static_cast<int>(value); };
  return {number(head_tiles),      number(pages), number(alone ? tiles : tiles - cut),
          number(alone ? 0 : cut), number(best),  number((pages + best - 1) / best)};
}

}  // namespace lolrt::cuda
