// Running the library's tasks on the threads that torch computes with.
//
// torch's OpenMP threads spin for milliseconds after each of its operations, in case there is more to do. A second pool has to
// fight them for the cores between any two linear layers: two of 256 x 1024 and a small attention in turns took 0.52 to 0.57 ms
// on two pools and 0.42 to 0.45 ms on one (2 cores). torch is neither linked nor a build requirement: its runtime is looked up in
// the process.
#pragma once

#include "lolrt/lolrt.h"

#include <atomic>

#if defined(__linux__)
#  include "crowding.h"

#  include <dlfcn.h>
#  include <link.h>

#  include <algorithm>
#  include <condition_variable>
#  include <cstring>
#  include <mutex>
#  include <string>
#  include <thread>
#endif

namespace lolrt {

// The entry points of the OpenMP runtime that torch uses (GNU's, or another that speaks its interface).
struct OpenMp {
  void (*parallel)(void (*body)(void *), void *arg, unsigned threads, unsigned flags) = nullptr;
  int (*thread_num)() = nullptr;
  int (*max_threads)() = nullptr;
  int (*processors)() = nullptr;
};

#if defined(__linux__)
// How long GNU's threads spin before they sleep is set once a process (lolrt/openmp.py), but for one thing: when there are more
// of them than cores, they hardly spin at all. So while other processes have the cores, a second team is there, which does
// nothing but sleep. It costs no time; spinning for as long as a quiet machine asks for made a chunk of `tiny` five times as slow
// as with one thread beside four busy processes (2026-11-29, two cores).
class SleepingTeam {
 public:
  void set(const OpenMp &runtime, bool present) {
    if (present == present_.load(std::memory_order_relaxed)) return;
    const std::unique_lock<std::mutex> lock(changing_, std::try_to_lock);
    if (!lock.owns_lock() || present == present_) return;
    {
      const std::lock_guard<std::mutex> leader_waits_or_looks_later(dismissal_);
      present_ = present;
    }
    if (present) {
      leader_ = std::thread([this, &runtime] {
        // As many as there were processors when the program began, which may be more than this thread may run on.
        const int enough = std::max(runtime.processors(), runtime.max_threads());
        runtime.parallel([](void *) {}, nullptr, static_cast<unsigned>(enough), 0);
        std::unique_lock<std::mutex> asleep(dismissal_);
        dismissed_.wait(asleep, [this] { return !present_; });
      });
    } else {
      dismissed_.notify_all();
      leader_.join();
    }
  }

 private:
  std::mutex changing_, dismissal_;
  std::condition_variable dismissed_;
  std::atomic<bool> present_{false};
  std::thread leader_;
};
#endif

struct OpenMpJob {
  const OpenMp *runtime;
  lolrt_task body;
  void *arg;
  int64_t tasks;
  std::atomic<int64_t> next;
};

inline void openmp_parallel_for(void *context, lolrt_task body, void *arg, int64_t tasks) {
  const auto *runtime = static_cast<const OpenMp *>(context);
  // Never more than torch's own team: resizing it would cost more than it gains.
  const int team = runtime->max_threads() < lolrt_threads() ? runtime->max_threads() : lolrt_threads();
  if (team < 2 || tasks < 2) {
    for (int64_t task = 0; task < tasks; ++task) body(arg, task, 0);
    return;
  }
  // Never destroyed: the process may end while the team sleeps.
  static auto &crowding = *new Crowding;
  static auto &sleeping = *new SleepingTeam;
  sleeping.set(*runtime, crowding.there_is());
  OpenMpJob job{runtime, body, arg, tasks, {0}};
  const auto work = [](void *shared) {
    auto &mine = *static_cast<OpenMpJob *>(shared);
    crowding.there_is();
    const int worker = mine.runtime->thread_num();
    for (int64_t task; (task = mine.next.fetch_add(1, std::memory_order_relaxed)) < mine.tasks;)
      mine.body(mine.arg, task, worker);
  };
  runtime->parallel(work, &job, static_cast<unsigned>(team), 0);
}

// Hands the library torch's threads if torch is loaded and computes with OpenMP; otherwise the library keeps its own.
inline void use_torch_threads() {
#if defined(__linux__)
  const auto find_torch = [](dl_phdr_info *info, size_t, void *path) -> int {
    if (std::strstr(info->dlpi_name, "/libtorch_cpu.so") == nullptr) return 0;
    *static_cast<std::string *>(path) = info->dlpi_name;
    return 1;
  };
  std::string path;
  dl_iterate_phdr(find_torch, &path);
  // Not in the callback: the loader's locks are held there, and dlopen takes them in another order.
  void *torch = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_NOLOAD | RTLD_LAZY);
  if (torch == nullptr) return;
  static OpenMp runtime;
  // The lookup goes through torch's own dependencies, so that another runtime in the process is not mistaken for its.
  runtime.parallel = reinterpret_cast<decltype(runtime.parallel)>(dlsym(torch, "GOMP_parallel"));
  runtime.thread_num = reinterpret_cast<decltype(runtime.thread_num)>(dlsym(torch, "omp_get_thread_num"));
  runtime.max_threads = reinterpret_cast<decltype(runtime.max_threads)>(dlsym(torch, "omp_get_max_threads"));
  runtime.processors = reinterpret_cast<decltype(runtime.processors)>(dlsym(torch, "omp_get_num_procs"));
  if (runtime.parallel && runtime.thread_num && runtime.max_threads && runtime.processors)
    lolrt_set_parallel_for(openmp_parallel_for, &runtime);
#endif
}

}  // namespace lolrt
