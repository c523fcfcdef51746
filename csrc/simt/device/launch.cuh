// The emulator's csrc/cuda/device/launch.cuh.
#pragma once

#include <device/language.cuh>

namespace lolrt::cuda {

struct Grid {
  unsigned x, y, z;
  unsigned threads;
  unsigned shared_bytes;
};

struct Device {
  int architecture, multiprocessors;
  const char *problem;
};

inline Device current_device() { return {simt::settings().architecture, simt::settings().multiprocessors, nullptr}; }

template <class Argument>
const char *launch(void (*kernel)(Argument), const Grid &grid, void *, const Argument &argument) {
  if (simt::runner() != nullptr) {
    const simt::Launch asked{reinterpret_cast<const void *>(kernel),
                             {grid.x, grid.y, grid.z},
                             grid.threads,
                             grid.shared_bytes,
                             &argument,
                             sizeof argument};
    return simt::runner()(&asked);
  }
  struct Call {
    void (*kernel)(Argument);
    const Argument &argument;
  } call{kernel, argument};
  const auto enter = [](const void *all) {
    const auto *here = static_cast<const Call *>(all);
    here->kernel(here->argument);
  };
  return simt::run({grid.x, grid.y, grid.z}, grid.threads, grid.shared_bytes, enter, &call, sizeof call);
}

}  // namespace lolrt::cuda
