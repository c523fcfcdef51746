#include "simt.h"

#include "race.h"

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

namespace lolrt::simt {
namespace {

constexpr unsigned kLanes = 32, kMaxThreads = 1024, kBarriers = 16;
constexpr size_t kStackBytes = 64 * 1024;
constexpr size_t kSharedBytes = 256 * 1024;  // more than any architecture has, so that a stray access harms nobody

struct Copy {
  unsigned char *to;
  const unsigned char *from;
  int bytes;
  bool valid, arrived;
};

// What a thread brings where a warp meets, and where that is.
struct Meeting {
  enum Kind { none, exchange, any_lane, sync_warp, load_matrices, multiply_add } kind = none;
  const void *place = nullptr;
  void *values = nullptr;
};

const char *name(Meeting::Kind kind) {
  static constexpr const char *names[] = {"nothing", "exchange", "any_lane", "sync_warp", "load_matrices", "multiply_add"};
  return names[kind];
}

struct Fiber {
  unsigned index;
  bool ended;
  const char *waits_at;
  jmp_buf registers;
  Meeting meeting;
  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> groups;
};

struct Buffer {
  uintptr_t start, end;
};

// One at a time in the process.
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
  std::vector<unsigned> met;  // lanes of each warp that wait where it meets
  std::vector<unsigned> at_barrier[kBarriers];
  std::deque<unsigned> ready;
  Fiber *current = nullptr;
  jmp_buf scheduler;
  unsigned char *stacks = nullptr;
};

Emulator &emulator() {
  static Emulator instance;
  return instance;
}

void report(const char *format, const char *what, unsigned thread, unsigned other = 0) {
  Emulator &e = emulator();
  char text[300];
  const int length = std::snprintf(text, sizeof text, "block (%u, %u, %u): ", e.block.x, e.block.y, e.block.z);
  std::snprintf(text + length, sizeof text - length, format, what, thread, other);
  if (e.problems.size() < 300) e.problems += (e.problems.empty() ? "" : "; ") + std::string(text);
}

// ---- threads in turns ----

unsigned next_ready() {
  Emulator &e = emulator();
  if (e.settings.seed != 0) std::swap(e.ready.front(), e.ready[e.random() % e.ready.size()]);
  const unsigned next = e.ready.front();
  e.ready.pop_front();
  return next;
}

// Leaves the current thread where it is, for the next that can go on.
void leave() {
  Emulator &e = emulator();
  Fiber *self = e.current;
  if (_setjmp(self->registers) != 0) return;
  if (e.ready.empty()) {
    e.current = nullptr;
    _longjmp(e.scheduler, 1);
  }
  e.current = &e.fibers[next_ready()];
  _longjmp(e.current->registers, 1);
}

void wait_at(const char *where) {
  emulator().current->waits_at = where;
  leave();
}

void resume(unsigned thread) { emulator().ready.push_back(thread); }

// Deadlock is looked for when nobody can go on.
void report_waiting() {
  Emulator &e = emulator();
  std::string waiting;
  for (unsigned i = 0; i < e.threads; ++i) {
    const Fiber &fiber = e.fibers[i];
    if (fiber.ended || waiting.find(fiber.waits_at) != std::string::npos) continue;
    const auto count = std::count_if(e.fibers.begin(), e.fibers.begin() + e.threads, [&](const Fiber &other) {
      return !other.ended && std::strcmp(other.waits_at, fiber.waits_at) == 0;
    });
    waiting += (waiting.empty() ? "" : ", ") + std::to_string(count) + " at " + fiber.waits_at;
  }
  report("deadlock: threads wait for ever: %s; %u of %u have ended", waiting.c_str(), e.threads - e.live, e.threads);
}

void thread_main() {
  Emulator &e = emulator();
  e.enter(e.argument);
  Fiber &self = *e.current;
  const auto none = [](const std::vector<Copy> &group) { return group.empty(); };
  if (!none(self.open_copies) || !std::all_of(self.groups.begin(), self.groups.end(), none))
    report("%s: thread %u ends", "copies that nobody waits for", self.index);
  self.ended = true;
  --e.live;
  leave();
  std::abort();
}

// A context on the fiber's own stack that begins thread_main when it is resumed.
void prepare(Fiber &fiber) {
  Emulator &e = emulator();
  static ucontext_t back;
  ucontext_t start;
  getcontext(&start);
  start.uc_stack.ss_sp = e.stacks + fiber.index * kStackBytes;
  start.uc_stack.ss_size = kStackBytes;
  start.uc_link = nullptr;
  e.current = &fiber;
  makecontext(
      &start,
      [] {
        if (_setjmp(emulator().current->registers) == 0) setcontext(&back);
        thread_main();
      },
      0);
  swapcontext(&back, &start);
  e.current = nullptr;
}

void run_block(uint32_t number) {
  Emulator &e = emulator();
  ++e.counts.blocks;
  e.live = e.threads;
  e.met.assign(e.threads / kLanes, 0);
  for (auto &barrier : e.at_barrier) barrier.clear();
  std::memset(e.shared, 0xff, e.shared_bytes);
  e.races.begin_block(number, e.threads, e.shared_bytes);
  e.ready.clear();
  for (unsigned i = 0; i < e.threads; ++i) {
    Fiber &fiber = e.fibers[i];
    fiber.index = i;
    fiber.ended = false;
    fiber.waits_at = "the start";
    fiber.meeting = {};
    fiber.open_copies.clear();
    fiber.groups.clear();
    prepare(fiber);
    resume(i);
  }
  if (_setjmp(e.scheduler) == 0) {
    e.current = &e.fibers[next_ready()];
    _longjmp(e.current->registers, 1);
  }
  if (e.live > 0) report_waiting();
}

// ---- memory ----

const char *name(Races::Kind kind) {
  switch (kind) {
    case Races::Kind::write_write:
      return "two writes";
    case Races::Kind::write_read:
      return "a write and a read after it";
    case Races::Kind::read_write:
      return "a read and a write after it";
    case Races::Kind::between_blocks:
      return "accesses of two blocks";
    default:
      return "an access and a copy under way";
  }
}

void check(Races::Kind kind, uint64_t offset) {
  if (kind == Races::Kind::none) return;
  report("race: %s are not ordered (thread %u, byte %u)", name(kind), emulator().current->index, static_cast<unsigned>(offset));
}

bool in_shared(const void *address, uint64_t bytes) {
  const Emulator &e = emulator();
  const auto *at = static_cast<const unsigned char *>(address);
  return at >= e.shared && at + bytes <= e.shared + e.shared_bytes;
}

void check_bounds(const void *address, uint64_t bytes) {
  const Emulator &e = emulator();
  const auto start = reinterpret_cast<uintptr_t>(address);
  const auto holds = [&](const Buffer &buffer) { return start >= buffer.start && start + bytes <= buffer.end; };
  if (e.buffers.empty() || holds(e.argument_buffer)) return;
  if (std::none_of(e.buffers.begin(), e.buffers.end(), holds)) {
    report("%s: thread %u touches %u bytes there", "an address outside every buffer", e.current->index,
           static_cast<unsigned>(bytes));
  }
}

void access(const void *address, uint64_t bytes, bool write) {
  Emulator &e = emulator();
  if (e.current == nullptr) return;
  const auto *at = static_cast<const unsigned char *>(address);
  if (at >= e.stacks && at < e.stacks + kMaxThreads * kStackBytes) return;
  const unsigned thread = e.current->index;
  if (in_shared(address, bytes)) {
    const uint64_t offset = at - e.shared;
    check(write ? e.races.write_shared(thread, offset, bytes) : e.races.read_shared(thread, offset, bytes), offset);
    return;
  }
  check_bounds(address, bytes);
  const auto where = reinterpret_cast<uintptr_t>(address);
  check(write ? e.races.write_global(thread, where, bytes) : e.races.read_global(thread, where, bytes), where);
}

// ---- where a warp meets ----

struct Exchange {
  float value, result;
  int mask;
};

struct AnyLane {
  bool predicate, result;
};

struct Load {
  uint32_t *words;
  const unsigned char *row;
  bool transposed;
};

struct Product {
  float *d;
  const uint32_t *a;
  uint32_t b[2];
  float (*value)(uint16_t);
};

template <class Values>
Values &values(Fiber *lanes, unsigned lane) {
  return *static_cast<Values *>(lanes[lane].meeting.values);
}

void exchange_values(Fiber *lanes) {
  for (unsigned i = 0; i < kLanes; ++i) {
    auto &mine = values<Exchange>(lanes, i);
    mine.result = values<Exchange>(lanes, (i ^ mine.mask) % kLanes).value;
  }
}

void combine_predicates(Fiber *lanes) {
  bool any = false;
  for (unsigned i = 0; i < kLanes; ++i) any |= values<AnyLane>(lanes, i).predicate;
  for (unsigned i = 0; i < kLanes; ++i) values<AnyLane>(lanes, i).result = any;
}

void load_all_matrices(Fiber *lanes) {
  Emulator &e = emulator();
  ++e.counts.matrix_loads;
  for (unsigned i = 0; i < kLanes; ++i) {
    const unsigned char *row = values<Load>(lanes, i).row;
    if (!in_shared(row, 16) || reinterpret_cast<uintptr_t>(row) % 16 != 0) {
      report("%s: thread %u loads a row of a matrix from there", "an address outside shared memory or not of 16 bytes",
             lanes[i].index);
      return;
    }
    const uint64_t offset = row - e.shared;
    check(e.races.read_shared(lanes[i].index, offset, 16), offset);
  }
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    unsigned banks = 0;  // of four words; 8 rows of 16 bytes should be in all 8
    for (unsigned j = 0; j < 8; ++j) banks |= 1u << (values<Load>(lanes, 8 * matrix + j).row - e.shared) / 16 % 8;
    e.counts.bank_conflicts += 8 - __builtin_popcount(banks);
    for (unsigned i = 0; i < kLanes; ++i) {
      const Load &mine = values<Load>(lanes, i);
      const unsigned g = i / 4, t = i % 4 * 2;
      if (!mine.transposed) {
        std::memcpy(&mine.words[matrix], values<Load>(lanes, 8 * matrix + g).row + 2 * t, 4);
      } else {
        uint16_t pair[2];
        for (unsigned j = 0; j < 2; ++j) std::memcpy(&pair[j], values<Load>(lanes, 8 * matrix + t + j).row + 2 * g, 2);
        mine.words[matrix] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
      }
    }
  }
}

void multiply_matrices(Fiber *lanes) {
  ++emulator().counts.products;
  float a[16][16], b[16][8], d[16][8];
  for (unsigned i = 0; i < kLanes; ++i) {
    const Product &mine = values<Product>(lanes, i);
    const unsigned g = i / 4, t = i % 4 * 2;
    for (unsigned word = 0; word < 4; ++word) {
      const unsigned row = g + word % 2 * 8, column = t + word / 2 * 8;
      a[row][column] = mine.value(static_cast<uint16_t>(mine.a[word]));
      a[row][column + 1] = mine.value(static_cast<uint16_t>(mine.a[word] >> 16));
      d[g + word / 2 * 8][t + word % 2] = mine.d[word];
    }
    for (unsigned word = 0; word < 2; ++word) {
      b[t + word * 8][g] = mine.value(static_cast<uint16_t>(mine.b[word]));
      b[t + word * 8 + 1][g] = mine.value(static_cast<uint16_t>(mine.b[word] >> 16));
    }
  }
  for (unsigned row = 0; row < 16; ++row) {
    for (unsigned k = 0; k < 16; ++k) {
      for (unsigned column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
    }
  }
  for (unsigned i = 0; i < kLanes; ++i) {
    for (unsigned word = 0; word < 4; ++word) values<Product>(lanes, i).d[word] = d[i / 4 + word / 2 * 8][i % 4 * 2 + word % 2];
  }
}

void carry_out(Meeting::Kind kind, Fiber *lanes) {
  switch (kind) {
    case Meeting::exchange:
      return exchange_values(lanes);
    case Meeting::any_lane:
      return combine_predicates(lanes);
    case Meeting::load_matrices:
      return load_all_matrices(lanes);
    case Meeting::multiply_add:
      return multiply_matrices(lanes);
    default: {
      std::vector<unsigned> threads;
      for (unsigned i = 0; i < kLanes; ++i) threads.push_back(lanes[i].index);
      emulator().races.meet(threads);
    }
  }
}

void meet(Meeting::Kind kind, const void *place, void *values) {
  Emulator &e = emulator();
  Fiber &self = *e.current;
  Fiber *lanes = &e.fibers[self.index / kLanes * kLanes];
  self.meeting = {kind, place, values};
  if (++e.met[self.index / kLanes] < kLanes) return wait_at(name(kind));
  e.met[self.index / kLanes] = 0;
  for (unsigned i = 0; i < kLanes; ++i) {
    if (lanes[i].meeting.kind != kind || lanes[i].meeting.place != place) {
      report("divergence: lanes of a warp meet at different instructions: thread %2$u at %1$s", name(lanes[i].meeting.kind),
             lanes[i].index);
      for (unsigned j = 0; j < kLanes; ++j) lanes[j].waits_at = "different instructions";
      leave();  // for ever
    }
  }
  carry_out(kind, lanes);
  for (unsigned i = 0; i < kLanes; ++i) {
    if (&lanes[i] != &self) resume(lanes[i].index);
  }
}

void arrive(Copy &copy) {
  if (copy.arrived) return;
  copy.arrived = true;
  if (copy.valid) {
    std::memcpy(copy.to, copy.from, copy.bytes);
  } else {
    std::memset(copy.to, 0, copy.bytes);
  }
}

}  // namespace

Runner &runner() {
  static Runner instance = nullptr;
  return instance;
}
Settings &settings() { return emulator().settings; }
Counts &counts() { return emulator().counts; }
void clear_buffers() { emulator().buffers.clear(); }
void add_buffer(const void *start, uint64_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(start);
  emulator().buffers.push_back({address, address + bytes});
}

const char *run(Index blocks, unsigned threads, unsigned shared_bytes, void (*enter)(const void *), const void *argument,
                uint64_t argument_bytes) {
  Emulator &e = emulator();
  e.problems.clear();
  if (threads == 0 || threads % kLanes != 0 || threads > kMaxThreads) return "a block is whole warps, up to 1024 threads";
  if (shared_bytes > kSharedBytes) return "more shared memory than there is";
  if (e.stacks == nullptr) {
    const size_t bytes = kSharedBytes + kMaxThreads * kStackBytes;
    void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return "no memory for the threads";
    e.shared = static_cast<unsigned char *>(memory);
    e.stacks = e.shared + kSharedBytes;
    e.fibers.resize(kMaxThreads);
  }
  e.enter = enter;
  e.argument = argument;
  const auto start = reinterpret_cast<uintptr_t>(argument);
  e.argument_buffer = {start, start + argument_bytes};
  e.random.seed(e.settings.seed);
  e.threads = threads;
  e.shared_bytes = shared_bytes;
  e.counts.shared_bytes = std::max<uint64_t>(e.counts.shared_bytes, shared_bytes);
  e.races.begin_launch();
  std::vector<uint32_t> order(static_cast<uint64_t>(blocks.x) * blocks.y * blocks.z);
  for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
  if (e.settings.seed != 0) std::shuffle(order.begin(), order.end(), e.random);
  for (const uint32_t number : order) {
    e.block = {number % blocks.x, number / blocks.x % blocks.y, number / blocks.x / blocks.y};
    run_block(number);
    if (!e.problems.empty()) return e.problems.c_str();
  }
  return nullptr;
}

unsigned thread_index() { return emulator().current->index; }
Index block_index() { return emulator().block; }
unsigned char *shared_memory() { return emulator().shared; }

void sync_block() { sync_named(0, emulator().threads); }

void sync_named(int barrier, unsigned threads) {
  Emulator &e = emulator();
  auto &here = e.at_barrier[barrier];
  here.push_back(e.current->index);
  if (here.size() < threads) return wait_at("a barrier");
  e.races.meet(here);
  for (const unsigned thread : here) {
    if (thread != e.current->index) resume(thread);
  }
  here.clear();
}

void sync_warp() { meet(Meeting::sync_warp, __builtin_return_address(0), nullptr); }

float exchange(float value, int mask) {
  Exchange mine{value, 0.0f, mask};
  meet(Meeting::exchange, __builtin_return_address(0), &mine);
  return mine.result;
}

bool any_lane(bool predicate) {
  AnyLane mine{predicate, false};
  meet(Meeting::any_lane, __builtin_return_address(0), &mine);
  return mine.result;
}

void load_matrices(uint32_t (&words)[4], const void *row, bool transposed) {
  Load mine{words, static_cast<const unsigned char *>(row), transposed};
  meet(Meeting::load_matrices, __builtin_return_address(0), &mine);
}

void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float (*value)(uint16_t)) {
  Product mine{d, a, {b0, b1}, value};
  meet(Meeting::multiply_add, __builtin_return_address(0), &mine);
}

void copy_async(void *shared, const void *global, int bytes, bool valid) {
  Emulator &e = emulator();
  ++e.counts.copies;
  const unsigned thread = e.current->index;
  const bool aligned = reinterpret_cast<uintptr_t>(shared) % bytes == 0 && reinterpret_cast<uintptr_t>(global) % bytes == 0;
  if (!aligned || !in_shared(shared, bytes)) {
    return report("%s: thread %u copies from or to there", "an address outside shared memory or not aligned", thread);
  }
  check_bounds(global, bytes);
  if (valid) {
    const auto where = reinterpret_cast<uintptr_t>(global);
    check(e.races.read_global(thread, where, bytes), where);
  }
  auto *to = static_cast<unsigned char *>(shared);
  const uint64_t offset = to - e.shared;
  check(e.races.begin_copy(thread, offset, bytes), offset);
  Copy copy{to, static_cast<const unsigned char *>(global), bytes, valid, false};
  std::memset(to, 0xff, bytes);
  if (e.settings.seed != 0 && e.random() % 2 == 0) arrive(copy);
  e.current->open_copies.push_back(copy);
}

void close_copy_group() {
  Fiber &self = *emulator().current;
  self.groups.push_back(std::move(self.open_copies));
  self.open_copies.clear();
}

void wait_for_copies(unsigned pending) {
  Emulator &e = emulator();
  Fiber &self = *e.current;
  for (; self.groups.size() > pending; self.groups.pop_front()) {
    for (Copy &copy : self.groups.front()) {
      arrive(copy);
      e.races.end_copy(self.index, copy.to - e.shared, copy.bytes);
    }
  }
}

}  // namespace lolrt::simt

// ---- what the compiler calls before each access to memory (-fsanitize=thread) ----

using lolrt::simt::access;

#define LOLRT_ACCESS(bytes)                                                           \
  void __tsan_read##bytes(void *address) { access(address, bytes, false); }           \
  void __tsan_write##bytes(void *address) { access(address, bytes, true); }           \
  void __tsan_unaligned_read##bytes(void *address) { access(address, bytes, false); } \
  void __tsan_unaligned_write##bytes(void *address) { access(address, bytes, true); }

extern "C" {
LOLRT_ACCESS(1)
LOLRT_ACCESS(2)
LOLRT_ACCESS(4)
LOLRT_ACCESS(8)
LOLRT_ACCESS(16)
void __tsan_read_range(void *address, size_t bytes) { access(address, bytes, false); }
void __tsan_write_range(void *address, size_t bytes) { access(address, bytes, true); }
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
}
