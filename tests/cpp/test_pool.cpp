// How the pool waits, and how many CPUs it believes there are.
#include "check.h"
#include "core/cpus.h"
#include "core/threads.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <thread>

namespace {

double cpu_seconds_of_this_thread() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// A caller that has nothing left to do and waits for another thread's task sleeps, because another process, or even that other
// thread, may need its core.
void test_a_waiting_caller_sleeps() {
  CHECK_OK(lolrt_set_threads(2));
  for (int round = 0; round < 20; ++round) {
    std::atomic<bool> taken{false}, done{false};
    const double before = cpu_seconds_of_this_thread();
    lolrt::parallel_for(2, 2, [&](int64_t, int32_t worker) {
      const auto pause = std::chrono::milliseconds(worker == 0 ? 1 : 30);
      if (worker != 0) taken = true;
      do std::this_thread::sleep_for(pause);
      while (!taken);
      if (worker != 0) done = true;
    });
    CHECK(done);
    CHECK(cpu_seconds_of_this_thread() - before < 0.015);
  }
}

class Groups {
 public:
  Groups() : root_(std::filesystem::temp_directory_path() / ("lolrt-groups-" + std::to_string(std::rand()))) {}
  ~Groups() { std::filesystem::remove_all(root_); }
  Groups(const Groups &) = delete;
  Groups &operator=(const Groups &) = delete;

  void write(const std::string &file, const std::string &text) {
    std::filesystem::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file) << text;
  }
  int32_t cpus(const std::string &groups) const { return lolrt::cpus_of_quota(groups, root_.string()); }

 private:
  std::filesystem::path root_;
};

void test_quotas() {
  Groups second;  // version
  CHECK(second.cpus("0::/user/one\n") == INT32_MAX);
  second.write("user/one/cpu.max", "max 100000\n");
  CHECK(second.cpus("0::/user/one\n") == INT32_MAX);
  second.write("user/cpu.max", "150000 100000\n");
  CHECK(second.cpus("0::/user/one\n") == 2);  // from the group above, rounded up
  second.write("user/one/cpu.max", "40000 100000\n");
  CHECK(second.cpus("0::/user/one\n") == 1);
  CHECK(second.cpus("0::/user/other\n") == 2);
  CHECK(second.cpus("0::/\n") == INT32_MAX);
  second.write("cpu.max", "300000 100000\n");  // as a container sees its own group
  CHECK(second.cpus("0::/\n") == 3 && second.cpus("0::/somewhere/outside\n") == 3 && second.cpus("0::/user\n") == 2);

  Groups first;
  first.write("cpu/box/cpu.cfs_quota_us", "-1\n");
  first.write("cpu/box/cpu.cfs_period_us", "100000\n");
  const std::string groups = "5:cpuset:/box\n4:cpu,cpuacct:/box\n0::/\n";
  CHECK(first.cpus(groups) == INT32_MAX);
  first.write("cpu/box/cpu.cfs_quota_us", "400000\n");
  CHECK(first.cpus(groups) == 4);
  CHECK(first.cpus("4:cpuacct:/box\n") == INT32_MAX);
  for (const char *nonsense : {"", "\n", "cpu", "1:cpu", ":::", "0:::\n"}) CHECK(first.cpus(nonsense) == INT32_MAX);
}

void test_affinity() {
  const int32_t cpus = lolrt::usable_cpus();
  CHECK(cpus >= 1 && cpus <= static_cast<int32_t>(std::thread::hardware_concurrency()));
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(sched_getcpu(), &one);
  std::thread([&] {
    if (sched_setaffinity(0, sizeof one, &one) == 0) CHECK(lolrt::usable_cpus() == 1);
  }).join();
}

}  // namespace

int main() {
  test_a_waiting_caller_sleeps();
  test_quotas();
  test_affinity();
  return report("pool");
}
