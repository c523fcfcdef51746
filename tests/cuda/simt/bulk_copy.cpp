// mbarriers, and the bulk copies that they count.
#include "emulator.h"

#include <algorithm>
#include <cstring>

namespace lolrt::simt {
namespace {

constexpr int kElementBytes = 2;
constexpr unsigned kRowBytes = 128;  // of a box in shared memory

bool is_phase_barrier(const void *address, uint64_t offset) {
  const Emulator &e = emulator();
  return std::any_of(e.phase_barriers.begin(), e.phase_barriers.end(), [&](const auto &entry) {
    return entry.first == offset && e.shared + offset == static_cast<const unsigned char *>(address);
  });
}

PhaseBarrier &phase_barrier(uint64_t offset) {
  for (auto &[at, barrier] : emulator().phase_barriers) {
    if (at == offset) return barrier;
  }
  std::abort();
}

// The thread's barrier; a thread that names none waits for ever.
PhaseBarrier &used_barrier(const void *address) {
  Emulator &e = emulator();
  const uint64_t offset = shared_address(address);
  if (!is_phase_barrier(address, offset)) {
    report("%s: thread %u uses one", "a barrier that was not initialised", e.current->index);
    stop_at("a barrier that was not initialised");
  }
  PhaseBarrier &barrier = phase_barrier(offset);
  if (!e.races.knows_of(e.current->index, barrier.made)) {
    check(Races::Kind::write_read, offset, e.current->index);
  }
  return barrier;
}

void end_phase_if_over(PhaseBarrier &barrier) {
  if (barrier.missing != 0 || barrier.bytes != 0) return;
  barrier.missing = barrier.arrivals;
  ++barrier.phase;
  barrier.over = barrier.known;
  for (const unsigned thread : barrier.waiting) resume(thread);
  barrier.waiting.clear();
}

// The 16-byte chunks of shared memory are permuted within 1024 bytes, by the address itself.
uint64_t swizzled(uint64_t offset) { return offset ^ (offset >> 7 & 7) << 4; }

// Where the box's row (y, z, w) begins in global memory; NULL when it lies beyond the tensor.
const unsigned char *row_of(const BulkCopy &copy, unsigned row) {
  const TensorBox &box = copy.box;
  const int64_t y = copy.at[1] + row % box.box[1], z = copy.at[2] + row / box.box[1] % box.box[2],
                w = copy.at[3] + row / box.box[1] / box.box[2];
  const auto inside = [&](int64_t at, int dimension) { return at >= 0 && at < static_cast<int64_t>(box.sizes[dimension]); };
  if (!inside(y, 1) || !inside(z, 2) || !inside(w, 3)) return nullptr;
  return static_cast<const unsigned char *>(box.data) + y * box.strides[0] + z * box.strides[1] + w * box.strides[2];
}

unsigned rows_of(const TensorBox &box) { return box.box[1] * box.box[2] * box.box[3]; }

// How many of the box's channels, from its first on, are in the tensor.
int64_t channels_of(const BulkCopy &copy) {
  return std::clamp<int64_t>(static_cast<int64_t>(copy.box.sizes[0]) - copy.at[0], 0, copy.box.box[0]);
}

}  // namespace

uint32_t shared_address(const void *shared) {
  return static_cast<uint32_t>(static_cast<const unsigned char *>(shared) - emulator().shared);
}

void init_barrier(void *address, int arrivals) {
  Emulator &e = emulator();
  const unsigned thread = e.current->index;
  const uint64_t offset = shared_address(address);
  if (!in_shared(address, 8) || offset % 8 != 0 || e.phase_barriers.size() >= Races::kAgents) {
    return report("%s: thread %u makes one", "a barrier outside shared memory, not aligned, or one too many", thread);
  }
  check(e.races.write_shared(thread, offset, 8), offset, thread);
  const auto agent = static_cast<unsigned>(e.phase_barriers.size());
  const auto count = static_cast<unsigned>(arrivals);
  e.phase_barriers.push_back({offset, {count, count, 0, 0, agent, thread, e.races.now(thread), false, {}, {}, {}}});
}

void publish_barriers() {
  Emulator &e = emulator();
  for (auto &[offset, barrier] : e.phase_barriers) barrier.published |= barrier.maker == e.current->index;
}

void arrive(void *address, int expected_bytes) {
  Emulator &e = emulator();
  PhaseBarrier &barrier = used_barrier(address);
  e.races.release(e.current->index, barrier.known);
  barrier.bytes += expected_bytes;
  --barrier.missing;
  end_phase_if_over(barrier);
}

void wait_for_phase(void *address, int parity) {
  Emulator &e = emulator();
  const unsigned thread = e.current->index;
  PhaseBarrier &barrier = used_barrier(address);
  while (barrier.phase % 2 == static_cast<unsigned>(parity)) {
    barrier.waiting.push_back(thread);
    wait_at("a phase");
  }
  e.races.acquire(thread, barrier.over);
}

void fence_proxy() { emulator().races.fence_proxy(emulator().current->index); }

const char *tensor_problem(const TensorBox &box) {
  constexpr uint64_t kMaxStride = uint64_t{1} << 40, kMaxSize = uint64_t{1} << 32;
  if (reinterpret_cast<uintptr_t>(box.data) % 16 != 0) return "a tensor map's data is not aligned to 16 bytes";
  for (const uint64_t stride : box.strides) {
    if (stride == 0 || stride % 16 != 0 || stride >= kMaxStride) {
      return "a tensor map's stride is not a multiple of 16 bytes below 2^40";
    }
  }
  for (int i = 1; i < 3; ++i) {
    if (box.strides[i] % box.strides[i - 1] != 0) return "a tensor map's stride is not a multiple of the one before";
  }
  for (const uint64_t size : box.sizes) {
    if (size == 0 || size > kMaxSize) return "a tensor map's size is not from 1 to 2^32";
  }
  for (const uint32_t size : box.box) {
    if (size == 0 || size > 256) return "a box's size is not from 1 to 256";
  }
  if (box.box[0] * kElementBytes != kRowBytes) return "a box's rows are not of 128 bytes";
  return nullptr;
}

void copy_box(void *shared, const TensorBox &box, void *address, const int (&at)[4]) {
  Emulator &e = emulator();
  ++e.counts.boxes;
  const unsigned thread = e.current->index;
  const PhaseBarrier &barrier = used_barrier(address);
  BulkCopy copy{static_cast<unsigned char *>(shared),
                box,
                {at[0], at[1], at[2], at[3]},
                shared_address(address),
                static_cast<uint64_t>(rows_of(box)) * kRowBytes};
  const uint64_t offset = shared_address(shared);
  if (!barrier.published) report("%s: thread %u copies", "the barrier is not published to bulk copies", thread);
  if (!in_shared(shared, copy.bytes) || offset % kRowBytes != 0) {
    return report("%s: thread %u copies there", "an address outside shared memory or not of 128 bytes", thread);
  }
  const auto stack = reinterpret_cast<uintptr_t>(e.stacks + thread * kStackBytes);  // where kernels have their parameters
  if (!Buffer{stack, stack + kStackBytes}.holds(reinterpret_cast<uintptr_t>(&box), sizeof box)) {
    return report("%s: thread %u copies", "the tensor map is not in the kernel's parameters", thread);
  }
  for (unsigned row = 0; row < rows_of(box); ++row) {
    const unsigned char *from = row_of(copy, row);
    const auto bytes = static_cast<uint64_t>(channels_of(copy) * kElementBytes);
    if (from == nullptr || bytes == 0) continue;
    check_bounds(from + at[0] * kElementBytes, bytes);
    const auto where = reinterpret_cast<uintptr_t>(from + at[0] * kElementBytes);
    check(e.races.read_global(thread, where, bytes), where, thread);
  }
  check(e.races.begin_bulk_copy(thread, barrier.agent, offset, copy.bytes), offset, thread);
  std::memset(shared, 0xff, copy.bytes);
  e.bulk_copies.push_back(copy);
}

bool deliver_bulk_copy() {
  Emulator &e = emulator();
  if (e.bulk_copies.empty()) return false;
  const auto chosen = e.bulk_copies.begin() + (e.settings.seed != 0 ? e.random() % e.bulk_copies.size() : 0);
  const BulkCopy copy = *chosen;
  e.bulk_copies.erase(chosen);
  const uint64_t offset = shared_address(copy.to);
  const auto bytes = static_cast<uint64_t>(channels_of(copy) * kElementBytes);
  for (unsigned row = 0; row < rows_of(copy.box); ++row) {
    unsigned char line[kRowBytes] = {};
    if (const unsigned char *from = row_of(copy, row)) std::memcpy(line, from + copy.at[0] * kElementBytes, bytes);
    for (unsigned at = 0; at < kRowBytes; at += 16)
      std::memcpy(e.shared + swizzled(offset + row * kRowBytes + at), line + at, 16);
  }
  PhaseBarrier &barrier = phase_barrier(copy.barrier);
  e.races.end_bulk_copy(barrier.agent, offset, copy.bytes);
  e.races.release(e.threads + barrier.agent, barrier.known);
  barrier.bytes -= static_cast<int64_t>(copy.bytes);
  end_phase_if_over(barrier);
  return true;
}

}  // namespace lolrt::simt
