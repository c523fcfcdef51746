// Whether threads of ours wait for a core that others have.
#pragma once

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>

namespace lolrt {

// Threads look at their own times in turns; what one of them notices counts for a while.
class Crowding {
 public:
  // Of the calling thread's making; as cheap as looking at a clock, most times.
  bool there_is() {
    static thread_local Times times;
    const int64_t now = nanoseconds();
    if (now - times.looked_at >= kEvery) {
      const int64_t waited = times.waited_for_cores();
      // The first look only says where it starts.
      if (times.looked_at != 0 && (waited - times.waited) > (now - times.looked_at) / kShare) until_ = now + kCounts;
      times.looked_at = now;
      times.waited = waited;
    }
    return now < until_.load(std::memory_order_relaxed);
  }

 private:
  static constexpr int64_t kEvery = 50'000'000, kCounts = 500'000'000;  // ns
  // A quarter of the time: with as many other processes as cores it is half. On a quiet machine it is less than a hundredth, but
  // for moments that are no reason to sleep.
  static constexpr int64_t kShare = 4;

  struct Times {
    int64_t looked_at = 0, waited = 0;
    const int file = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);

    ~Times() {
      if (file >= 0) close(file);
    }
    // Nanoseconds that the thread was ready to run and did not; 0 where the system does not count them.
    int64_t waited_for_cores() const {
      char text[96] = "";
      long long ran = 0, waited = 0;
      if (file < 0 || pread(file, text, sizeof text - 1, 0) <= 0 || std::sscanf(text, "%lld %lld", &ran, &waited) != 2) return 0;
      return waited;
    }
  };

  static int64_t nanoseconds() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
  }

  std::atomic<int64_t> until_{0};
};

}  // namespace lolrt
