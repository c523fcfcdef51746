// What the parts of the emulator share: the running block, its threads, and how they wait. Kernels see only simt.h.
#pragma once

#include "race.h"
#include "simt.h"

#include <array>
#include <bitset>
#include <csetjmp>
#include <deque>
#include <random>
#include <string>
#include <vector>

namespace lolrt::simt {

constexpr unsigned kLanes = 32, kMaxThreads = 1024, kBarriers = 16;
constexpr size_t kStackBytes = 64 * 1024;
constexpr size_t kSharedBytes = 256 * 1024;  // more than any architecture has, so that a stray access harms nobody

struct Copy {
  unsigned char *to;
  const unsigned char *from;
  int bytes;
  bool valid, arrived;
};

// What a thread contributes where a warp meets, and where that is.
struct Meeting {
  enum Kind {
    none,
    exchange,
    any_lane,
    sync_warp,
    load_matrices,
    multiply_add,
    set_registers,
    fence_products,
    begin_product,
    commit_product_group,
    wait_for_products
  } kind = none;
  const void *place = nullptr;
  void *values = nullptr;
};

struct Buffer {
  uintptr_t start, end;
  bool holds(uintptr_t address, uint64_t bytes) const { return address >= start && address + bytes <= end; }
};

struct Fiber {
  unsigned index;
  bool ended;
  const char *waits_at;
  jmp_buf registers;
  Meeting meeting;
  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> groups;
  // Words of the stack that were written since the last fence of products; the stack stands for registers.
  std::array<uint64_t, kStackBytes / 4 / 64> written;
  std::vector<Buffer> of_products;  // registers of products under way
};

// What a warp multiplies with a matrix in shared memory.
struct WarpProduct {
  struct Lane {
    float *d;
    const uint32_t *a;
  } lanes[kLanes];
  int columns;
  bool transposed, add, done;
  float (*value)(uint16_t);
  std::vector<uint32_t> chunks;  // of 16 bytes, offsets in shared memory; as matrix_chunks orders them
};

struct Warp {
  unsigned met = 0;  // lanes that wait where it meets
  unsigned registers = 0;
  std::vector<WarpProduct> open_products;
  std::deque<std::vector<WarpProduct>> product_groups;
  size_t products = 0;
};

// A barrier of the block, or of some of its warps.
struct NamedBarrier {
  unsigned threads;               // that it waits for
  std::bitset<kMaxThreads> came;  // those of them who have come
  std::vector<unsigned> waiting;  // and do not go on before all have
  std::vector<uint32_t> known;    // by those who have come
};

// An mbarrier.
struct PhaseBarrier {
  unsigned arrivals, missing;  // of a phase, and still to come in this one
  int64_t bytes;               // announced and not yet there
  unsigned phase;
  unsigned agent;               // who writes what its copies bring (race.h)
  unsigned maker;               // the thread that initialised it
  uint32_t made;                // when
  bool published;               // to bulk copies
  std::vector<uint32_t> known;  // by those who have arrived; then by those who wait
  std::vector<uint32_t> over;
  std::vector<unsigned> waiting;
};

// A box in flight.
struct BulkCopy {
  unsigned char *to;
  TensorBox box;
  int64_t at[4];
  uint64_t barrier;  // offset
  uint64_t bytes;
};

// There is one at a time in the process.
struct Emulator {
  Settings settings;
  Counts counts;
  std::vector<Buffer> buffers;
  std::string problems;

  // Of the launch.
  void (*enter)(const void *);
  const void *argument;
  Buffer argument_buffer;
  std::mt19937_64 random;
  Races races;

  // Of the block.
  Index block;
  unsigned threads, live;
  unsigned char *shared = nullptr;
  unsigned shared_bytes;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::array<NamedBarrier, kBarriers> named_barriers;
  std::vector<std::pair<uint64_t, PhaseBarrier>> phase_barriers;  // by their offsets
  std::vector<BulkCopy> bulk_copies;
  std::vector<std::vector<uint64_t>> products;  // of each warpgroup, what its first warp to come multiplied
  int multiplying;                              // the warpgroup that has begun the last one
  unsigned free_registers;
  std::vector<unsigned> waiting_for_registers;
  std::deque<unsigned> ready;
  Fiber *current = nullptr;
  jmp_buf scheduler;
  unsigned char *stacks = nullptr;
};

Emulator &emulator();

// `format` (printf style) gets `what`, `thread` and `other`. The launch fails.
void report(const char *format, const char *what, unsigned thread, unsigned other = 0);

// ---- threads in turns ----

// Leaves the current thread until it is resumed, and runs the next thread that can continue.
void wait_at(const char *where);
void resume(unsigned thread);
// Leaves the thread forever.
void stop_at(const char *where);

// ---- memory ----

bool in_shared(const void *address, uint64_t bytes);
// A thread that accesses forbidden memory does not continue.
void check_bounds(const void *address, uint64_t bytes);
// Reports a race.
void check(Races::Kind kind, uint64_t offset, unsigned thread);

// ---- parts ----

const char *name(Meeting::Kind kind);
// The last lane of the warp to arrive carries out the operation for which the warp meets.
void meet(Meeting::Kind kind, const void *place, void *values);
template <class Values>
Values &values(Fiber *lanes, unsigned lane) {
  return *static_cast<Values *>(lanes[lane].meeting.values);
}

// warpgroup.cpp
void begin_block_of_warpgroups();
void set_warp_registers(Fiber *lanes);
void fence_warp_products(Fiber *lanes);
void begin_warp_product(Fiber *lanes);
void close_warp_products(Fiber *lanes);
void wait_for_warp_products(Fiber *lanes);
// An access of a thread to its own stack.
void touch_registers(Fiber &fiber, uintptr_t address, uint64_t bytes, bool write);
void report_open_products(const Fiber &fiber);

// bulk_copy.cpp. Completes one copy, if there is one.
bool deliver_bulk_copy();

}  // namespace lolrt::simt
