// Files that become shorter while they are mapped: touching a page that is gone raises SIGBUS, which ends the process unless it
// is handled. Here the page becomes one of zeros, and is counted, so that whoever reads the file can tell that it is not what it
// was.
#pragma once

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <mutex>

namespace lolrt {

struct GuardedRange {
  std::atomic<uintptr_t> begin{UINTPTR_MAX}, end{0};
};

class GuardedMappings {
 public:
  // Gives a number to take the guard away by; -1 where there are too many.
  static int add(uintptr_t begin, uint64_t bytes) {
    static std::once_flag installed;
    std::call_once(installed, [] {
      struct sigaction action{};
      action.sa_sigaction = handle;
      action.sa_flags = SA_SIGINFO | SA_ONSTACK;
      sigaction(SIGBUS, &action, &before_);
      page_ = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    });
    for (int i = 0; i < kMost; ++i) {
      uintptr_t free = 0;
      if (!ranges_[i].end.compare_exchange_strong(free, 1)) continue;  // taken, and empty
      ranges_[i].begin = begin;
      ranges_[i].end = begin + bytes;
      return i;
    }
    return -1;
  }

  static void remove(int number) {
    if (number < 0 || number >= kMost) return;
    ranges_[number].begin = UINTPTR_MAX;
    ranges_[number].end = 0;
  }

  // Pages that were gone when they were touched, since the last call.
  static int64_t take_lost() { return lost_.exchange(0); }

 private:
  static constexpr int kMost = 1024;

  static void handle(int number, siginfo_t *info, void *) {
    const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
    for (const GuardedRange &range : ranges_) {
      if (address < range.begin || address >= range.end) continue;
      void *page = reinterpret_cast<void *>(address - address % page_);
      if (mmap(page, page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != page) break;
      ++lost_;
      return;
    }
    sigaction(number, &before_, nullptr);  // not ours: the access is made again, and whoever was there before is asked
  }

  static inline GuardedRange ranges_[kMost];
  static inline std::atomic<int64_t> lost_{0};
  static inline struct sigaction before_{};
  static inline uintptr_t page_ = 4096;
};

}  // namespace lolrt
