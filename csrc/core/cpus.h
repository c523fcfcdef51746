// How many CPUs this process may use.
#pragma once

#include <cstdint>
#include <string>

namespace lolrt {

// Those in its affinity mask, but no more than the quota of its control groups lets run at a time.
int32_t usable_cpus();

// The quota that remains for a process from its control groups and their parents, rounded up; INT32_MAX without one. `groups` is
// the text of /proc/self/cgroup, and `mounted` the folder of the groups, /sys/fs/cgroup.
int32_t cpus_of_quota(const std::string &groups, const std::string &mounted);

}  // namespace lolrt
