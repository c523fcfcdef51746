// The thread pool: every task once, workers in range and never shared, whoever calls and however the pool is resized.
#include "check.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <thread>

namespace {

// A norm over many rows is many tasks, and its result is known and does not depend on their order.
void norm_and_check(int64_t rows, int64_t channels = 64) {
  Tensor<float> x({1, rows, channels}), out({1, rows, channels}, NAN), scale({1, channels}, 2.0f), shift({1, channels}, 1.0f);
  for (int64_t i = 0; i < rows * channels; ++i) x[i] = i % 2 ? 3.0f : -3.0f;
  const lolrt_modulated_norm_desc desc{sizeof desc, 0.0f, &x, nullptr, nullptr, &scale, &shift, &out, nullptr};
  CHECK_OK(lolrt_modulated_norm(&desc));
  bool right = true;
  for (int64_t i = rows * channels - 1; i >= 0; --i) right = right && out[i] == (i % 2 ? 3.0f : -1.0f);  // the last comes first
  CHECK(right);
}

void test_sizes() {
  CHECK_FAILS(lolrt_set_threads(0), LOLRT_INVALID_ARGUMENT, "0 threads");
  for (int threads : {1, 2, 7, 3}) {
    CHECK_OK(lolrt_set_threads(threads));
    CHECK(lolrt_threads() == threads);
    for (int i = 0; i < 50; ++i) norm_and_check(1 + 97 * (i % 20));
  }
}

// Long tasks for two threads: the one that started later ends later, and the call may not return before that.
void test_waits_for_the_last_task() {
  CHECK_OK(lolrt_set_threads(2));
  for (int i = 0; i < 40; ++i) norm_and_check(4, 100000);
}

void test_concurrent_callers() {
  CHECK_OK(lolrt_set_threads(3));
  std::atomic<bool> stop{false};
  std::thread resizer([&] {
    for (int i = 0; !stop; ++i) lolrt_set_threads(1 + i % 4);
  });
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) {
    callers.emplace_back([] {
      for (int call = 0; call < 100; ++call) norm_and_check(2000);
    });
  }
  for (std::thread &caller : callers) caller.join();
  stop = true;
  resizer.join();
}

void test_parked_threads() {
  CHECK_OK(lolrt_set_threads(2));
  for (int i = 0; i < 20; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // long enough to park
    norm_and_check(3000);
  }
}

struct Counter {
  std::vector<int> seen;
  bool workers_in_range = true;
};

void backwards(void *context, lolrt_task body, void *arg, int64_t tasks) {
  auto *counter = static_cast<Counter *>(context);
  counter->seen.assign(static_cast<size_t>(tasks), 0);
  for (int64_t task = tasks - 1; task >= 0; --task) {
    ++counter->seen[static_cast<size_t>(task)];
    body(arg, task, static_cast<int32_t>(task % lolrt_threads()));
  }
}

void test_host_threads() {
  Counter counter;
  CHECK_OK(lolrt_set_parallel_for(backwards, &counter));
  norm_and_check(5000);
  CHECK(counter.seen.size() > 1);
  CHECK_OK(lolrt_set_parallel_for(nullptr, nullptr));
  counter.seen.clear();
  norm_and_check(5000);
  CHECK(counter.seen.empty());
}

// A child process has none of its parent's threads, and must not wait for them, whether they were working, about to park, or
// parked.
void test_fork() {
  CHECK_OK(lolrt_set_threads(16));
  norm_and_check(500);
  // Threads that have only just started are inside the sanitizer's allocator, whose locks GCC 12 does not release in a child.
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  for (int round = 0; round < 60 && failures == 0; ++round) {
    norm_and_check(500);
    std::this_thread::sleep_for(std::chrono::microseconds(round % 4 * 20));
    const pid_t child = fork();
    if (child == 0) {
      alarm(20);  // a child that hangs is killed by it
      CHECK(lolrt_threads() == 16);
      for (int call = 0; call < 5; ++call) norm_and_check(500);
      _exit(failures != 0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
}

}  // namespace

int main() {
  test_sizes();
  test_waits_for_the_last_task();
  test_concurrent_callers();
  test_parked_threads();
  test_host_threads();
  test_fork();
  return report("threads");
}
