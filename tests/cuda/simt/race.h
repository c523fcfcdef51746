// Whether the threads' accesses to memory are ordered: happens-before by vector clocks, after FastTrack (Flanagan and Freund,
// 2009).
//
// Beside the threads there are agents, each of which stands for what the bulk copies of one mbarrier write.
//
// A thread's clock ticks at each barrier; a barrier passes to all who meet there what any of them knows. A write must know of the
// last write and of the reads before it, a read of the last write. Shared memory is watched in words of four bytes; of a word's
// readers the last of each warp is kept. Other memory is watched in half words, for writes only: a read that comes before another
// thread's write is seen when the order of the threads is another.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace lolrt::simt {

class Races {
 public:
  enum class Kind { none, write_write, write_read, read_write, copy_under_way, between_blocks, product_under_way, other_proxy };
  static constexpr unsigned kAgents = 32;

  void begin_launch() { written_.clear(); }
  void begin_block(uint32_t block, unsigned threads, unsigned shared_bytes);

  // Accesses of [offset, offset + bytes) of shared memory.
  Kind read_shared(unsigned thread, uint64_t offset, uint64_t bytes);
  Kind write_shared(unsigned thread, uint64_t offset, uint64_t bytes);
  // A copy has begun. Until it is waited for, nobody may access its target.
  Kind begin_copy(unsigned thread, uint64_t offset, uint64_t bytes);
  void end_copy(unsigned thread, uint64_t offset, uint64_t bytes);

  // The same for a bulk copy, whose writes belong to `agent`.
  Kind begin_bulk_copy(unsigned thread, unsigned agent, uint64_t offset, uint64_t bytes);
  void end_bulk_copy(unsigned agent, uint64_t offset, uint64_t bytes);
  // A product that reads these bytes. Until it has been waited for, nobody may write them. A warp's product counts as its first
  // thread's.
  Kind begin_product(unsigned thread, uint64_t offset, uint64_t bytes);
  void end_product(unsigned thread, uint64_t offset, uint64_t bytes);
  // What the thread has written may be read by copies and products of threads that know of it.
  void fence_proxy(unsigned thread);

  // Passes on what the thread, or the agent, knows; takes over what others passed on.
  void release(unsigned thread, std::vector<uint32_t> &known);
  void acquire(unsigned thread, const std::vector<uint32_t> &known);
  uint32_t now(unsigned thread) { return epoch(thread); }
  bool knows_of(unsigned thread, uint32_t epoch) { return knows(thread, epoch); }

  Kind read_global(unsigned thread, uintptr_t address, uint64_t bytes);
  Kind write_global(unsigned thread, uintptr_t address, uint64_t bytes);

  // A barrier of these threads.
  void meet(const std::vector<unsigned> &threads);

 private:
  static constexpr unsigned kThreadBits = 11;
  static constexpr uintptr_t kPageBytes = 4096;

  struct Write {
    uint32_t block = 0;
    uint32_t epoch = 0;  // clock and thread; 0: none
  };
  using Page = std::array<Write, kPageBytes / 2>;

  uint32_t &clock(unsigned thread, unsigned of) { return clocks_[thread * clocks_of_each_ + of]; }
  uint32_t epoch(unsigned thread) { return clock(thread, thread) << kThreadBits | thread; }
  // Whether `thread` knows of the event at this epoch.
  bool knows(unsigned thread, uint32_t epoch) {
    const unsigned other = epoch & ((1u << kThreadBits) - 1);
    return epoch == 0 || other == thread || clock(thread, other) >= epoch >> kThreadBits;
  }
  Kind write_word(unsigned thread, uint64_t word);
  // Whether copies and products may rely on what was written then: it was written by one of them, or before a fence.
  bool passed_proxy(uint32_t epoch) const;
  Write *written(uintptr_t address, bool create);

  unsigned threads_ = 0, clocks_of_each_ = 0, warps_ = 0;
  uint32_t block_ = 0;
  std::vector<uint32_t> clocks_;    // [threads and agents][threads and agents]
  std::vector<uint32_t> fenced_;    // [threads], clock at the last fence of proxies
  std::vector<uint32_t> writes_;    // [words], epochs
  std::vector<uint32_t> reads_;     // [words][warps], epochs
  std::vector<uint16_t> copies_;    // [words], 1 + the thread or agent whose copy is under way
  std::vector<uint16_t> products_;  // [words], how many products under way read it
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> written_;
  std::vector<uint32_t> joined_;
};

}  // namespace lolrt::simt
