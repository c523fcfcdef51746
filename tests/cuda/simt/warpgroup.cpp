// Products of warpgroups, a warp's 16 rows at a time, and registers that move between warpgroups.
#include "emulator.h"

#include <algorithm>
#include <cstring>

namespace lolrt::simt {
namespace {

constexpr unsigned kWarpgroupWarps = 4, kStep = 16, kRegisterFile = 65536;
constexpr int kMaxColumns = 256;

struct Registers {
  unsigned count;
  bool take;
};

struct Begun {
  WarpProduct::Lane lane;
  int columns;
  uint64_t b;
  bool transposed, add;
  float (*value)(uint16_t);
};

Warp &warp_of(const Fiber *lanes) { return emulator().warps[lanes[0].index / kLanes]; }

// Where a 16-bit element's chunk of 16 bytes lies, for a matrix b of 16 rows: PTX ISA, "matrix descriptor", and the canonical
// layouts of "asynchronous warpgroup level matrix shared memory layout". `span` is what the swizzle permutes within: 16 (not at
// all), 32, 64 or 128 bytes; `leading` and `stride` are the two offsets of the descriptor.
class MatrixLayout {
 public:
  explicit MatrixLayout(uint64_t descriptor)
      : start_((descriptor & 0x3fff) << 4),
        leading_((descriptor >> 16 & 0x3fff) << 4),
        stride_((descriptor >> 32 & 0x3fff) << 4) {
    constexpr uint32_t kSpans[] = {16, 128, 64, 32};
    span_ = kSpans[descriptor >> 62];
  }

  // K-major: columns are rows of memory; chunk `k` (0 or 1) of a column.
  uint32_t of_column(uint32_t column, uint32_t k) const {
    const uint32_t along = span_ == 16 ? k * leading_ : k * 16;
    return permuted(start_ + column / 8 * stride_ + column % 8 * span_ + along);
  }

  // Transposed: rows are rows of memory; the chunk of columns 8 chunk to 8 chunk + 7.
  uint32_t of_row(uint32_t row, uint32_t chunk) const {
    if (span_ == 16) return start_ + chunk * stride_ + row % 8 * 16 + row / 8 * leading_;
    const uint32_t chunks = span_ / 16;
    return permuted(start_ + chunk / chunks * leading_ + chunk % chunks * 16 + row % 8 * span_ + row / 8 * stride_);
  }

 private:
  // 128 bytes: bits 4-6 of the address are xored with bits 7-9; 64: 4-5 with 7-8; 32: 4 with 7.
  uint32_t permuted(uint32_t address) const { return address ^ (address >> 7 & (span_ / 16 - 1)) << 4; }

  uint32_t start_, leading_, stride_, span_;
};

std::vector<uint32_t> matrix_chunks(const Begun &product) {
  const MatrixLayout layout(product.b);
  std::vector<uint32_t> chunks;
  if (product.transposed) {
    for (unsigned row = 0; row < kStep; ++row) {
      for (int chunk = 0; chunk < product.columns / 8; ++chunk) chunks.push_back(layout.of_row(row, chunk));
    }
  } else {
    for (int column = 0; column < product.columns; ++column) {
      for (unsigned k = 0; k < 2; ++k) chunks.push_back(layout.of_column(column, k));
    }
  }
  return chunks;
}

void load_matrix(const WarpProduct &product, float (&b)[kStep][kMaxColumns]) {
  const unsigned char *shared = emulator().shared;
  size_t next = 0;
  const auto load = [&](float *first, int step) {
    uint16_t chunk[8];
    std::memcpy(chunk, shared + product.chunks[next++], sizeof chunk);
    for (int i = 0; i < 8; ++i) first[i * step] = product.value(chunk[i]);
  };
  if (product.transposed) {
    for (unsigned row = 0; row < kStep; ++row) {
      for (int column = 0; column < product.columns; column += 8) load(&b[row][column], 1);
    }
  } else {
    for (int column = 0; column < product.columns; ++column) {
      for (unsigned row = 0; row < kStep; row += 8) load(&b[row][column], kMaxColumns);
    }
  }
}

void carry_out(WarpProduct &product) {
  if (product.done) return;
  product.done = true;
  ++emulator().counts.warpgroup_products;
  static float b[kStep][kMaxColumns], d[kStep][kMaxColumns];
  load_matrix(product, b);
  float a[kStep][kStep];
  for (unsigned i = 0; i < kLanes; ++i) {
    const unsigned g = i / 4, t = i % 4 * 2;
    for (unsigned word = 0; word < 4; ++word) {
      const unsigned row = g + word % 2 * 8, column = t + word / 2 * 8;
      a[row][column] = product.value(static_cast<uint16_t>(product.lanes[i].a[word]));
      a[row][column + 1] = product.value(static_cast<uint16_t>(product.lanes[i].a[word] >> 16));
    }
  }
  const auto each = [&](auto use) {
    for (unsigned i = 0; i < kLanes; ++i) {
      float *of_lane = product.lanes[i].d;
      for (int word = 0; word < product.columns / 2; ++word) {
        use(d[i / 4 + word / 2 % 2 * 8][word / 4 * 8 + i % 4 * 2 + word % 2], of_lane[word]);
      }
    }
  };
  each([&](float &mine, float theirs) { mine = product.add ? theirs : 0.0f; });
  for (unsigned row = 0; row < kStep; ++row) {
    for (unsigned k = 0; k < kStep; ++k) {
      for (int column = 0; column < product.columns; ++column) d[row][column] += a[row][k] * b[k][column];
    }
  }
  each([](float mine, float &theirs) { theirs = mine; });
}

// The words of the fiber's stack that were written since the last fence.
uint64_t first_word(const Fiber &fiber, uintptr_t address) {
  return (address - reinterpret_cast<uintptr_t>(emulator().stacks + fiber.index * kStackBytes)) / 4;
}

bool was_written(const Fiber &fiber, const Buffer &registers) {
  for (uintptr_t at = registers.start; at < registers.end; at += 4) {
    const uint64_t word = first_word(fiber, at);
    if (fiber.written[word / 64] >> word % 64 & 1) return true;
  }
  return false;
}

Buffer buffer_of(const void *start, uint64_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(start);
  return {address, address + bytes};
}

Buffer registers_of_d(const WarpProduct &product, unsigned lane) {
  return buffer_of(product.lanes[lane].d, product.columns / 2 * sizeof(float));
}

Buffer registers_of_a(const WarpProduct &product, unsigned lane) {
  return buffer_of(product.lanes[lane].a, 4 * sizeof(uint32_t));
}

// All four warps of a warpgroup are to take part in the same products.
void compare_with_warpgroup(Warp &warp, const Begun &product, unsigned thread) {
  auto &products = emulator().products[thread / kLanes / kWarpgroupWarps];
  const uint64_t what =
      product.b * 4 + product.transposed * 2 + product.add + static_cast<uint64_t>(product.columns) * 0x9e3779b9u;
  if (warp.products == products.size()) products.push_back(what);
  if (products[warp.products++] != what) {
    report("divergence: %s: thread %u", "warps of a warpgroup multiply different matrices", thread);
  }
}

}  // namespace

void begin_block_of_warpgroups() {
  Emulator &e = emulator();
  const unsigned registers = std::min(kRegisterFile / e.threads / 8 * 8, 248u);
  e.warps.assign(e.threads / kLanes, {});
  for (Warp &warp : e.warps) warp.registers = registers;
  e.products.assign((e.warps.size() + kWarpgroupWarps - 1) / kWarpgroupWarps, {});
  e.multiplying = -1;
  e.free_registers = 0;
  e.waiting_for_registers.clear();
}

void touch_registers(Fiber &fiber, uintptr_t address, uint64_t bytes, bool write) {
  for (const Buffer &registers : fiber.of_products) {
    if (address < registers.end && address + bytes > registers.start) {
      return report("%s: thread %u touches them", "registers of a product under way", fiber.index);
    }
  }
  if (!write) return;
  const uint64_t first = first_word(fiber, address);
  for (uint64_t word = first; word < first + (bytes + 3) / 4 && word / 64 < fiber.written.size(); ++word) {
    fiber.written[word / 64] |= uint64_t{1} << word % 64;
  }
}

void report_open_products(const Fiber &fiber) {
  if (!fiber.of_products.empty()) report("%s: thread %u ends", "products that nobody waits for", fiber.index);
}

void set_warp_registers(Fiber *lanes) {
  Emulator &e = emulator();
  Warp &warp = warp_of(lanes);
  const auto wanted = values<Registers>(lanes, 0);
  if (wanted.count % 8 != 0 || wanted.count < 24 || wanted.count > 256 || (wanted.count > warp.registers) != wanted.take) {
    return report("%s: thread %u", "registers are taken or given back by 8, from 24 to 256", lanes[0].index);
  }
  if (wanted.take) return;
  e.free_registers += (warp.registers - wanted.count) * kLanes;
  warp.registers = wanted.count;
  for (const unsigned thread : e.waiting_for_registers) resume(thread);
  e.waiting_for_registers.clear();
}

void set_registers(unsigned registers, bool take) {
  Registers wanted{registers, take};
  meet(Meeting::set_registers, __builtin_return_address(0), &wanted);
  Emulator &e = emulator();
  Warp &warp = e.warps[e.current->index / kLanes];
  while (take && warp.registers < registers) {
    const unsigned missing = (registers - warp.registers) * kLanes;
    if (e.free_registers >= missing) {
      e.free_registers -= missing;
      warp.registers = registers;
      return;
    }
    e.waiting_for_registers.push_back(e.current->index);
    wait_at("registers");
  }
}

void fence_warp_products(Fiber *lanes) {
  for (unsigned i = 0; i < kLanes; ++i) lanes[i].written = {};
}

void begin_warp_product(Fiber *lanes) {
  Emulator &e = emulator();
  Warp &warp = warp_of(lanes);
  const auto &first = values<Begun>(lanes, 0);
  WarpProduct product{{}, first.columns, first.transposed, first.add, false, first.value, matrix_chunks(first)};
  const unsigned thread = lanes[0].index;
  compare_with_warpgroup(warp, first, thread);
  const auto warpgroup = static_cast<int>(thread / kLanes / kWarpgroupWarps);
  e.counts.warpgroup_turns += warpgroup != e.multiplying;
  e.multiplying = warpgroup;
  for (unsigned i = 0; i < kLanes; ++i) {
    product.lanes[i] = values<Begun>(lanes, i).lane;
    if (values<Begun>(lanes, i).b != first.b)
      report("divergence: %s: thread %u", "lanes multiply different matrices", lanes[i].index);
    if (was_written(lanes[i], registers_of_d(product, i)) || was_written(lanes[i], registers_of_a(product, i))) {
      report("%s: thread %u", "registers of a product were written without a fence", lanes[i].index);
    }
    lanes[i].of_products.push_back(registers_of_d(product, i));
    lanes[i].of_products.push_back(registers_of_a(product, i));
  }
  for (const uint32_t offset : product.chunks) {
    if (!in_shared(e.shared + offset, 16)) {
      report("%s: thread %u multiplies with what is there", "an address outside shared memory", thread);
      stop_at("an address outside shared memory");
    }
    check(e.races.begin_product(thread, offset, 16), offset, thread);
  }
  warp.open_products.push_back(std::move(product));
  if (e.settings.seed != 0 && e.random() % 4 == 0) {
    for (auto &group : warp.product_groups) std::for_each(group.begin(), group.end(), carry_out);
    std::for_each(warp.open_products.begin(), warp.open_products.end(), carry_out);
  }
}

void close_warp_products(Fiber *lanes) {
  Warp &warp = warp_of(lanes);
  warp.product_groups.push_back(std::move(warp.open_products));
  warp.open_products.clear();
}

void wait_for_warp_products(Fiber *lanes) {
  Emulator &e = emulator();
  Warp &warp = warp_of(lanes);
  const unsigned pending = *static_cast<const unsigned *>(lanes[0].meeting.values);
  for (; warp.product_groups.size() > pending; warp.product_groups.pop_front()) {
    for (WarpProduct &product : warp.product_groups.front()) {
      carry_out(product);
      for (const uint32_t offset : product.chunks) e.races.end_product(lanes[0].index, offset, 16);
      for (unsigned i = 0; i < kLanes; ++i) {
        auto &under_way = lanes[i].of_products;  // in the order in which they began
        under_way.erase(under_way.begin(), under_way.begin() + 2);
      }
    }
  }
}

void fence_products() { meet(Meeting::fence_products, __builtin_return_address(0), nullptr); }

void begin_product(float *d, int columns, const uint32_t (&a)[4], uint64_t b, bool transposed, bool add,
                   float (*value)(uint16_t)) {
  Begun mine{{d, a}, columns, b, transposed, add, value};
  meet(Meeting::begin_product, __builtin_return_address(0), &mine);
}

void commit_product_group() { meet(Meeting::commit_product_group, __builtin_return_address(0), nullptr); }

void wait_for_products(unsigned pending) { meet(Meeting::wait_for_products, __builtin_return_address(0), &pending); }

}  // namespace lolrt::simt
