// The thread pool. Work is a number of independent tasks; results never depend on which thread runs which task.
#pragma once

#include "lolrt/lolrt.h"

namespace lolrt {

// Runs body(arg, task, worker) once for every task in [0, tasks): on the host's threads if it gave its own parallel_for, on the
// library's otherwise. `worker` is in [0, workers), `workers` being lolrt_threads() or what it was when the caller last looked;
// at one time no two tasks of a call have the same.
void parallel_for(int64_t tasks, int32_t workers, lolrt_task body, void *arg);

// The same for a callable body(task, worker).
template <class Body>
void parallel_for(int64_t tasks, int32_t workers, const Body &body) {
  parallel_for(
      tasks, workers, [](void *arg, int64_t task, int32_t worker) { (*static_cast<const Body *>(arg))(task, worker); },
      const_cast<Body *>(&body));
}

}  // namespace lolrt
