#include "core/cpus.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>
#include <thread>

#if defined(__linux__)
#  include <sched.h>
#endif

namespace lolrt {
namespace {

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

std::string text_of(const std::string &path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// The quota of one group, in CPUs. The file holds "quota period" in microseconds; without a limit the quota is "max" (version 2)
// or -1 (version 1).
double quota(const std::string &text) {
  std::istringstream words(text);
  double quota = 0, period = 0;
  return words >> quota >> period && quota > 0 && period > 0 ? quota / period : kUnlimited;
}

double quota_of_group(const std::string &folder, bool second_version) {
  if (second_version) return quota(text_of(folder + "/cpu.max"));
  return quota(text_of(folder + "/cpu.cfs_quota_us") + " " + text_of(folder + "/cpu.cfs_period_us"));
}

bool has_word(const std::string &list, const std::string &word) { return ("," + list + ",").find("," + word + ",") != list.npos; }

int32_t cpus_of_affinity() {
#if defined(__linux__)
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) return std::max(CPU_COUNT(&mask), 1);
#endif
  return static_cast<int32_t>(std::clamp(std::thread::hardware_concurrency(), 1u, 1u << 20));
}

}  // namespace

int32_t cpus_of_quota(const std::string &groups, const std::string &mounted) {
  double least = kUnlimited;
  std::istringstream lines(groups);
  for (std::string line; std::getline(lines, line);) {  // number:controllers:path; version 2 lists no controllers
    const size_t controllers = line.find(':') + 1, path = line.find(':', controllers) + 1;
    if (controllers == 0 || path == 0) continue;
    const std::string listed = line.substr(controllers, path - 1 - controllers);
    if (!listed.empty() && !has_word(listed, "cpu")) continue;
    const std::string root = listed.empty() ? mounted : mounted + "/cpu";
    // A group that is not found lies outside the container's view, whose root is then its own group.
    for (std::string group = line.substr(path);; group.erase(group.rfind('/'))) {
      least = std::min(least, quota_of_group(root + group, listed.empty()));
      if (group.find('/') == group.npos) break;
    }
  }
  return least < INT32_MAX ? static_cast<int32_t>(std::ceil(least)) : INT32_MAX;
}

int32_t usable_cpus() { return std::min(cpus_of_affinity(), cpus_of_quota(text_of("/proc/self/cgroup"), "/sys/fs/cgroup")); }

}  // namespace lolrt
