// How many CPUs there are for this process.
#pragma once

#include <cstdint>
#include <string>

namespace lolrt {

// Those that its affinity mask names, but no more than the quota of its control groups lets run at a time.
int32_t usable_cpus();

// The quota that the control groups of a process and those above them leave it, rounded up; INT32_MAX without one. `groups` is
// the text of /proc/self/cgroup, and `mounted` where the groups are, /sys/fs/cgroup.
int32_t cpus_of_quota(const std::string &groups, const std::string &mounted);

}  // namespace lolrt
