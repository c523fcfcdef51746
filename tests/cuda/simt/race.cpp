#include "race.h"

#include <algorithm>

namespace lolrt::simt {

void Races::begin_block(uint32_t block, unsigned threads, unsigned shared_bytes) {
  block_ = block;
  threads_ = threads;
  warps_ = threads / 32;
  const uint64_t words = (shared_bytes + 3) / 4;
  clocks_of_each_ = threads + kAgents;
  clocks_.assign(static_cast<uint64_t>(clocks_of_each_) * clocks_of_each_, 0);
  for (unsigned thread = 0; thread < clocks_of_each_; ++thread) clock(thread, thread) = 1;
  fenced_.assign(threads, 0);
  writes_.assign(words, 0);
  reads_.assign(words * warps_, 0);
  copies_.assign(words, 0);
  products_.assign(words, 0);
}

Races::Kind Races::read_shared(unsigned thread, uint64_t offset, uint64_t bytes) {
  Kind kind = Kind::none;
  for (uint64_t word = offset / 4; word < (offset + bytes + 3) / 4; ++word) {
    if (copies_[word] != 0) kind = Kind::copy_under_way;
    if (!knows(thread, writes_[word])) kind = Kind::write_read;
    reads_[word * warps_ + thread / 32] = epoch(thread);
  }
  return kind;
}

Races::Kind Races::write_word(unsigned thread, uint64_t word) {
  Kind kind = Kind::none;
  if (copies_[word] != 0) kind = Kind::copy_under_way;
  if (!knows(thread, writes_[word])) kind = Kind::write_write;
  if (products_[word] != 0) kind = Kind::product_under_way;
  for (unsigned warp = 0; warp < warps_; ++warp) {
    uint32_t &read = reads_[word * warps_ + warp];
    if (!knows(thread, read)) kind = Kind::read_write;
    read = 0;
  }
  writes_[word] = epoch(thread);
  return kind;
}

Races::Kind Races::write_shared(unsigned thread, uint64_t offset, uint64_t bytes) {
  Kind kind = Kind::none;
  for (uint64_t word = offset / 4; word < (offset + bytes + 3) / 4; ++word) kind = std::max(kind, write_word(thread, word));
  return kind;
}

Races::Kind Races::begin_copy(unsigned thread, uint64_t offset, uint64_t bytes) {
  const Kind kind = write_shared(thread, offset, bytes);
  for (uint64_t word = offset / 4; word < (offset + bytes) / 4; ++word) copies_[word] = static_cast<uint16_t>(thread + 1);
  return kind;
}

void Races::end_copy(unsigned thread, uint64_t offset, uint64_t bytes) {
  for (uint64_t word = offset / 4; word < (offset + bytes) / 4; ++word) {
    if (copies_[word] == thread + 1) copies_[word] = 0;
    writes_[word] = epoch(thread);
  }
}

Races::Kind Races::begin_bulk_copy(unsigned thread, unsigned agent, uint64_t offset, uint64_t bytes) {
  Kind kind = Kind::none;
  for (uint64_t word = offset / 4; word < (offset + bytes) / 4; ++word) {
    if (!passed_proxy(writes_[word])) kind = Kind::other_proxy;
    kind = std::max(kind, write_word(thread, word));
    writes_[word] = 0;
    copies_[word] = static_cast<uint16_t>(threads_ + agent + 1);
  }
  return kind;
}

void Races::end_bulk_copy(unsigned agent, uint64_t offset, uint64_t bytes) {
  ++clock(threads_ + agent, threads_ + agent);
  for (uint64_t word = offset / 4; word < (offset + bytes) / 4; ++word) {
    copies_[word] = 0;
    writes_[word] = epoch(threads_ + agent);
  }
}

Races::Kind Races::begin_product(unsigned thread, uint64_t offset, uint64_t bytes) {
  Kind kind = Kind::none;
  for (uint64_t word = offset / 4; word < (offset + bytes) / 4; ++word) {
    if (copies_[word] != 0) kind = Kind::copy_under_way;
    if (!knows(thread, writes_[word])) kind = Kind::write_read;
    if (!passed_proxy(writes_[word])) kind = Kind::other_proxy;
    ++products_[word];
  }
  return kind;
}

void Races::end_product(unsigned thread, uint64_t offset, uint64_t bytes) {
  for (uint64_t word = offset / 4; word < (offset + bytes) / 4; ++word) {
    --products_[word];
    reads_[word * warps_ + thread / 32] = epoch(thread);
  }
}

void Races::fence_proxy(unsigned thread) { fenced_[thread] = clock(thread, thread)++; }

bool Races::passed_proxy(uint32_t epoch) const {
  const unsigned writer = epoch & ((1u << kThreadBits) - 1);
  return epoch == 0 || writer >= threads_ || fenced_[writer] >= epoch >> kThreadBits;
}

void Races::release(unsigned thread, std::vector<uint32_t> &known) {
  known.resize(clocks_of_each_);
  for (unsigned of = 0; of < clocks_of_each_; ++of) known[of] = std::max(known[of], clock(thread, of));
  ++clock(thread, thread);
}

void Races::acquire(unsigned thread, const std::vector<uint32_t> &known) {
  for (unsigned of = 0; of < known.size(); ++of) clock(thread, of) = std::max(clock(thread, of), known[of]);
}

Races::Write *Races::written(uintptr_t address, bool create) {
  const auto found = written_.find(address / kPageBytes);
  if (found != written_.end()) return &(*found->second)[address % kPageBytes / 2];
  if (!create) return nullptr;
  auto &page = written_[address / kPageBytes];
  page = std::make_unique<Page>();
  return &(*page)[address % kPageBytes / 2];
}

Races::Kind Races::read_global(unsigned thread, uintptr_t address, uint64_t bytes) {
  for (uintptr_t at = address / 2 * 2; at < address + bytes; at += 2) {
    const Write *write = written(at, false);
    if (write == nullptr || write->epoch == 0) continue;
    if (write->block != block_) return Kind::between_blocks;
    if (!knows(thread, write->epoch)) return Kind::write_read;
  }
  return Kind::none;
}

Races::Kind Races::write_global(unsigned thread, uintptr_t address, uint64_t bytes) {
  Kind kind = Kind::none;
  for (uintptr_t at = address / 2 * 2; at < address + bytes; at += 2) {
    Write &write = *written(at, true);
    if (write.epoch != 0 && write.block != block_) {
      kind = Kind::between_blocks;
    } else if (!knows(thread, write.epoch)) {
      kind = Kind::write_write;
    }
    write = {block_, epoch(thread)};
  }
  return kind;
}

void Races::meet(const std::vector<unsigned> &threads) {
  joined_.assign(clocks_of_each_, 0);
  for (const unsigned thread : threads) {
    for (unsigned of = 0; of < clocks_of_each_; ++of) joined_[of] = std::max(joined_[of], clock(thread, of));
  }
  for (const unsigned thread : threads) {
    std::copy(joined_.begin(), joined_.end(), &clock(thread, 0));
    ++clock(thread, thread);
  }
}

}  // namespace lolrt::simt
