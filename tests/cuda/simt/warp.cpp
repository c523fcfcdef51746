// Where a warp meets: exchanges, matrices of sm_80, and the calls of warpgroups.
#include "emulator.h"

#include <cstring>

namespace lolrt::simt {
namespace {

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
    check(e.races.read_shared(lanes[i].index, offset, 16), offset, lanes[i].index);
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
    case Meeting::set_registers:
      return set_warp_registers(lanes);
    case Meeting::fence_products:
      return fence_warp_products(lanes);
    case Meeting::begin_product:
      return begin_warp_product(lanes);
    case Meeting::commit_product_group:
      return close_warp_products(lanes);
    case Meeting::wait_for_products:
      return wait_for_warp_products(lanes);
    default: {
      std::vector<unsigned> threads;
      for (unsigned i = 0; i < kLanes; ++i) threads.push_back(lanes[i].index);
      emulator().races.meet(threads);
    }
  }
}

}  // namespace

const char *name(Meeting::Kind kind) {
  static constexpr const char *names[] = {
      "nothing",          "exchange",      "any_lane",       "sync_warp",     "load_matrices",
      "multiply_add",     "set_registers", "fence_products", "begin_product", "commit_product_group",
      "wait_for_products"};
  return names[kind];
}

void meet(Meeting::Kind kind, const void *place, void *values) {
  Emulator &e = emulator();
  Fiber &self = *e.current;
  Fiber *lanes = &e.fibers[self.index / kLanes * kLanes];
  self.meeting = {kind, place, values};
  if (++e.warps[self.index / kLanes].met < kLanes) return wait_at(name(kind));
  e.warps[self.index / kLanes].met = 0;
  for (unsigned i = 0; i < kLanes; ++i) {
    if (lanes[i].meeting.kind != kind || lanes[i].meeting.place != place) {
      report("divergence: lanes of a warp meet at different instructions: thread %2$u at %1$s", name(lanes[i].meeting.kind),
             lanes[i].index);
      for (unsigned j = 0; j < kLanes; ++j) lanes[j].waits_at = "different instructions";
      stop_at("different instructions");
    }
  }
  carry_out(kind, lanes);
  for (unsigned i = 0; i < kLanes; ++i) {
    if (&lanes[i] != &self) resume(lanes[i].index);
  }
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

}  // namespace lolrt::simt
