// A pool of threads that spin for a moment and then park. Callers that wait do so too: on a busy machine, a thread that spins may
// take the core that the thread it waits for needs.
//
// A job is open while its gate is: threads enter, take tasks from a shared counter until none is left, and leave. The caller
// works too, closes the gate when the counter has run out and waits for those inside; a thread that wakes late finds the gate
// closed. So a call never waits for a thread that has nothing to do, and works even when no thread comes.
#include "core/threads.h"

#include "core/cpus.h"
#include "core/status.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <pthread.h>
#include <system_error>
#include <thread>
#include <vector>

namespace lolrt {
namespace {

constexpr int32_t kMaxThreads = 1024;
// Spins before a waiting thread parks: about 20 us, which is the cost of waking it. Longer spins would take cores from the host's
// own threads, which compute between two calls.
constexpr int kSpins = 400;

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class ThreadPool {
 public:
  explicit ThreadPool(int32_t size) : size_(size) {}

  int32_t size() const { return size_.load(std::memory_order_relaxed); }

  void resize(int32_t size) {
    std::lock_guard<std::mutex> busy(busy_);
    stop();
    size_ = size;
  }

  void run(int64_t tasks, int32_t workers, lolrt_task body, void *arg) {
    std::unique_lock<std::mutex> busy(busy_, std::defer_lock);
    // If another host thread is inside, its tasks have the pool, and ours run in this thread.
    if (tasks < 2 || workers < 2 || size() < 2 || !busy.try_lock()) {
      for (int64_t task = 0; task < tasks; ++task) body(arg, task, 0);
      return;
    }
    start();
    job_ = {body, arg, tasks, workers};
    next_task_.store(0, std::memory_order_relaxed);
    gate_.store(0, std::memory_order_release);  // open, with nobody inside
    announce();
    work(0);
    gate_.fetch_or(kClosed, std::memory_order_acq_rel);
    wait_until_empty();
  }

 private:
  struct Job {
    lolrt_task body;
    void *arg;
    int64_t tasks;
    int32_t workers;
  };

  static constexpr uint32_t kClosed = 1u << 31;

  // Threads start on first use: a process that only loads the library has none.
  void start() {
    if (!threads_.empty()) return;
    stopping_ = false;
    try {
      for (int32_t worker = 1; worker < size(); ++worker) threads_.emplace_back(&ThreadPool::thread_main, this, worker);
    } catch (const std::system_error &) {
      // Fewer threads than requested: slower, but still correct.
    }
  }

  void stop() {
    stopping_ = true;
    announce();
    for (std::thread &thread : threads_) thread.join();
    threads_.clear();
  }

  void announce() {
    generation_.fetch_add(1);
    if (parked_.load() > 0) {
      std::lock_guard<std::mutex> lock(parking_);
      wake_.notify_all();
    }
  }

  void thread_main(int32_t worker) {
    uint64_t seen = 0;
    while (!stopping_) {
      seen = wait_for_news(seen);
      if (!enter()) continue;
      work(worker);
      leave();
    }
  }

  // The last one out of a closed gate wakes the caller, if it has parked.
  void leave() {
    if (gate_.fetch_sub(1) == kClosed + 1 && caller_parked_.load()) {
      std::lock_guard<std::mutex> lock(parking_);
      empty_.notify_one();
    }
  }

  void wait_until_empty() {
    for (int spins = 0; spins < kSpins; ++spins) {
      if (gate_.load(std::memory_order_acquire) == kClosed) return;
      pause_cpu();
    }
    std::unique_lock<std::mutex> lock(parking_);
    caller_parked_ = true;  // must precede the next look at gate_: leave() looks at them in the opposite order
    empty_.wait(lock, [&] { return gate_.load() == kClosed; });
    caller_parked_ = false;
  }

  uint64_t wait_for_news(uint64_t seen) {
    for (int spins = 0; spins < kSpins; ++spins) {
      const uint64_t now = generation_.load(std::memory_order_acquire);
      if (now != seen) return now;
      pause_cpu();
    }
    std::unique_lock<std::mutex> lock(parking_);
    parked_.fetch_add(1);  // must precede the next look at generation_: announce() looks at them in the opposite order
    wake_.wait(lock, [&] { return generation_.load() != seen; });
    parked_.fetch_sub(1);
    return generation_.load();
  }

  bool enter() {
    uint32_t inside = gate_.load(std::memory_order_acquire);
    while (!(inside & kClosed)) {
      if (gate_.compare_exchange_weak(inside, inside + 1, std::memory_order_acq_rel)) return true;
    }
    return false;
  }

  void work(int32_t worker) {
    const Job job = job_;
    if (worker >= job.workers) return;  // the pool has grown since the caller looked
    for (int64_t task; (task = next_task_.fetch_add(1, std::memory_order_relaxed)) < job.tasks;) job.body(job.arg, task, worker);
  }

  std::atomic<int32_t> size_;
  std::mutex busy_;  // held by the host thread that owns the current job
  std::vector<std::thread> threads_;
  Job job_{};
  std::atomic<bool> stopping_{false};
  alignas(64) std::atomic<int64_t> next_task_{0};
  alignas(64) std::atomic<uint32_t> gate_{kClosed};  // threads inside the job, and whether it is closed
  alignas(64) std::atomic<uint64_t> generation_{0};
  std::atomic<int> parked_{0};
  std::mutex parking_;
  std::condition_variable wake_;
  std::atomic<bool> caller_parked_{false};
  std::condition_variable empty_;
};

struct Hook {
  lolrt_parallel_for run;
  void *context;
};
std::mutex hook_lock;
Hook hook{};

int32_t default_size() { return std::min(usable_cpus(), kMaxThreads); }

// The pool of the process. It is never destroyed, because its threads may outlive the host's static destructors.
std::atomic<ThreadPool *> process_pool{nullptr};

// A child process has none of the threads, and inherits the pool's locks in their state at the fork, forever. So it gets a new
// pool.
void after_fork_in_child() {
  process_pool = new ThreadPool(process_pool.load()->size());
  hook_lock.unlock();
}

ThreadPool &pool() {
  static const bool made = [] {
    process_pool = new ThreadPool(default_size());
    return pthread_atfork([] { hook_lock.lock(); }, [] { hook_lock.unlock(); }, after_fork_in_child) == 0;
  }();
  (void)made;
  return *process_pool.load(std::memory_order_relaxed);
}

}  // namespace

void parallel_for(int64_t tasks, int32_t workers, lolrt_task body, void *arg) {
  Hook host;
  {
    std::lock_guard<std::mutex> lock(hook_lock);
    host = hook;
  }
  if (host.run) {
    host.run(host.context, body, arg, tasks);
  } else {
    pool().run(tasks, workers, body, arg);
  }
}

}  // namespace lolrt

using namespace lolrt;

int32_t lolrt_threads(void) { return pool().size(); }

lolrt_status lolrt_set_threads(int32_t threads) {
  return guarded([&] {
    if (threads < 1 || threads > kMaxThreads) {
      fail(LOLRT_INVALID_ARGUMENT, "set_threads: %d threads; expected 1 to %d", threads, kMaxThreads);
    }
    pool().resize(threads);
  });
}

lolrt_status lolrt_set_parallel_for(lolrt_parallel_for run, void *context) {
  return guarded([&] {
    std::lock_guard<std::mutex> lock(hook_lock);
    hook = {run, context};
  });
}
