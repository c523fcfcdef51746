#include "emulator.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <sys/mman.h>
#include <ucontext.h>

namespace lolrt::simt {

Emulator &emulator() {
  static Emulator instance;
  return instance;
}

void report(const char *format, const char *what, unsigned thread, unsigned other) {
  Emulator &e = emulator();
  char text[300];
  const int length = std::snprintf(text, sizeof text, "block (%u, %u, %u): ", e.block.x, e.block.y, e.block.z);
  std::snprintf(text + length, sizeof text - length, format, what, thread, other);
  if (e.problems.size() < 300) e.problems += (e.problems.empty() ? "" : "; ") + std::string(text);
}

// ---- threads in turns ----

namespace {

unsigned next_ready() {
  Emulator &e = emulator();
  if (e.settings.seed != 0) std::swap(e.ready.front(), e.ready[e.random() % e.ready.size()]);
  const unsigned next = e.ready.front();
  e.ready.pop_front();
  return next;
}

// Leaves the current thread, and runs the next one that can continue.
void leave() {
  Emulator &e = emulator();
  Fiber *self = e.current;
  if (_setjmp(self->registers) != 0) return;
  // Bulk copies arrive when no thread can continue without them, or at any time.
  if (e.settings.seed != 0 && e.random() % 8 == 0) deliver_bulk_copy();
  while (e.ready.empty() && deliver_bulk_copy()) continue;
  if (e.ready.empty()) {
    e.current = nullptr;
    _longjmp(e.scheduler, 1);
  }
  e.current = &e.fibers[next_ready()];
  _longjmp(e.current->registers, 1);
}

}  // namespace

void wait_at(const char *where) {
  emulator().current->waits_at = where;
  leave();
}

void resume(unsigned thread) { emulator().ready.push_back(thread); }

void stop_at(const char *where) {
  while (true) wait_at(where);
}

namespace {

// Deadlock is checked when no thread can continue.
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
  report_open_products(self);
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
  begin_block_of_warpgroups();
  e.named_barriers.fill({});
  e.phase_barriers.clear();
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
    fiber.written = {};
    fiber.of_products.clear();
    prepare(fiber);
    resume(i);
  }
  if (_setjmp(e.scheduler) == 0) {
    e.current = &e.fibers[next_ready()];
    _longjmp(e.current->registers, 1);
  }
  if (e.live > 0) report_waiting();
  if (!e.bulk_copies.empty()) report("%s: the block ends", "copies that nobody waits for", 0);
  e.bulk_copies.clear();
  const auto pending = [](const NamedBarrier &barrier) { return barrier.came.any(); };
  if (e.live == 0 && std::any_of(e.named_barriers.begin(), e.named_barriers.end(), pending)) {
    report("%s: the block ends", "threads have come to a barrier and nobody waits", 0);
  }
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
    case Races::Kind::product_under_way:
      return "a write and a product under way";
    case Races::Kind::other_proxy:
      return "a write of a thread and an access of the copy or product engine, without a proxy fence,";
    default:
      return "an access and a copy under way";
  }
}

}  // namespace

void check(Races::Kind kind, uint64_t offset, unsigned thread) {
  if (kind == Races::Kind::none) return;
  report("race: %s are not ordered (thread %u, byte %u)", name(kind), thread, static_cast<unsigned>(offset));
}

bool in_shared(const void *address, uint64_t bytes) {
  const Emulator &e = emulator();
  const auto *at = static_cast<const unsigned char *>(address);
  return at >= e.shared && at + bytes <= e.shared + e.shared_bytes;
}

void check_bounds(const void *address, uint64_t bytes) {
  const Emulator &e = emulator();
  const auto start = reinterpret_cast<uintptr_t>(address);
  const auto holds = [&](const Buffer &buffer) { return buffer.holds(start, bytes); };
  if (e.buffers.empty() || holds(e.argument_buffer)) return;
  if (std::none_of(e.buffers.begin(), e.buffers.end(), holds)) {
    report("%s: thread %u touches %u bytes there", "an address outside every buffer", e.current->index,
           static_cast<unsigned>(bytes));
    stop_at("an access that is refused");
  }
}

namespace {

void check_alignment(const void *address, unsigned bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes == 0) return;
  report("%s: thread %u touches %u bytes there", "an address that is not aligned to them", emulator().current->index, bytes);
  stop_at("an access that is refused");
}

// An access of a thread, which stops here if it is forbidden. `aligned`: the access is one instruction on a GPU.
void access(const void *address, uint64_t bytes, bool write, bool aligned) {
  Emulator &e = emulator();
  if (e.current == nullptr) return;
  const auto *at = static_cast<const unsigned char *>(address);
  if (at >= e.stacks && at < e.stacks + kMaxThreads * kStackBytes) {
    return touch_registers(*e.current, reinterpret_cast<uintptr_t>(address), bytes, write);
  }
  const unsigned thread = e.current->index;
  if (aligned) check_alignment(address, static_cast<unsigned>(bytes));
  if (in_shared(address, bytes)) {
    const uint64_t offset = at - e.shared;
    check(write ? e.races.write_shared(thread, offset, bytes) : e.races.read_shared(thread, offset, bytes), offset, thread);
    return;
  }
  check_bounds(address, bytes);
  const auto where = reinterpret_cast<uintptr_t>(address);
  check(write ? e.races.write_global(thread, where, bytes) : e.races.read_global(thread, where, bytes), where, thread);
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
  const auto all = static_cast<uint64_t>(blocks.x) * blocks.y * blocks.z;
  std::vector<uint32_t> order(e.settings.last_blocks > 0 ? std::min<uint64_t>(e.settings.last_blocks, all) : all);
  std::iota(order.begin(), order.end(), static_cast<uint32_t>(all - order.size()));
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

void check_vectors(const void *to, const void *from, unsigned bytes) {
  if (emulator().current == nullptr) return;
  check_alignment(to, bytes);
  check_alignment(from, bytes);
}

void sync_block() { sync_named(0, emulator().threads); }

namespace {

// Whether the current thread is the last that a barrier waits for.
bool come_to(NamedBarrier &barrier, unsigned threads) {
  Emulator &e = emulator();
  const unsigned thread = e.current->index;
  if (barrier.came.none()) barrier.threads = threads;
  if (barrier.came[thread] || barrier.threads != threads) {
    report("%s: thread %u",
           barrier.came[thread] ? "a thread comes to a barrier again before all others" : "a barrier of other threads", thread);
    stop_at("a barrier");
  }
  barrier.came.set(thread);
  e.races.release(thread, barrier.known);
  return barrier.came.count() == threads;
}

// All have come.
void end_phase(NamedBarrier &barrier) {
  for (const unsigned thread : barrier.waiting) {
    emulator().races.acquire(thread, barrier.known);
    resume(thread);
  }
  barrier = {};
}

}  // namespace

void sync_named(int number, unsigned threads) {
  Emulator &e = emulator();
  NamedBarrier &barrier = e.named_barriers[number];
  if (!come_to(barrier, threads)) {
    barrier.waiting.push_back(e.current->index);
    return wait_at("a barrier");
  }
  e.races.acquire(e.current->index, barrier.known);
  end_phase(barrier);
}

void arrive_named(int number, unsigned threads) {
  NamedBarrier &barrier = emulator().named_barriers[number];
  if (come_to(barrier, threads)) end_phase(barrier);
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
    check(e.races.read_global(thread, where, bytes), where, thread);
  }
  auto *to = static_cast<unsigned char *>(shared);
  const uint64_t offset = to - e.shared;
  check(e.races.begin_copy(thread, offset, bytes), offset, thread);
  Copy copy{to, static_cast<const unsigned char *>(global), bytes, valid, false};
  std::memset(to, 0xff, bytes);
  if (e.settings.seed != 0 && e.random() % 2 == 0) arrive(copy);
  e.current->open_copies.push_back(copy);
}

void commit_copy_group() {
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

// Unaligned are those of types whose alignment is smaller, which a GPU goes by too.
#define LOLRT_ACCESS(bytes)                                                                  \
  void __tsan_read##bytes(void *address) { access(address, bytes, false, true); }            \
  void __tsan_write##bytes(void *address) { access(address, bytes, true, true); }            \
  void __tsan_unaligned_read##bytes(void *address) { access(address, bytes, false, false); } \
  void __tsan_unaligned_write##bytes(void *address) { access(address, bytes, true, false); }

extern "C" {
LOLRT_ACCESS(1)
LOLRT_ACCESS(2)
LOLRT_ACCESS(4)
LOLRT_ACCESS(8)
LOLRT_ACCESS(16)
void __tsan_read_range(void *address, size_t bytes) { access(address, bytes, false, false); }
void __tsan_write_range(void *address, size_t bytes) { access(address, bytes, true, false); }
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
}
