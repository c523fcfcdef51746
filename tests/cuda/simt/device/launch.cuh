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
  const auto enter = [](const void *all) {
    const auto *launch = static_cast<const simt::Launch *>(all);
    reinterpret_cast<void (*)(Argument)>(const_cast<void *>(launch->kernel))(*static_cast<const Argument *>(launch->argument));
  };
  const simt::Launch asked{reinterpret_cast<const void *>(kernel),
                           {grid.x, grid.y, grid.z},
                           grid.threads,
                           grid.shared_bytes,
                           &argument,
                           sizeof argument,
                           enter};
  return simt::runner() != nullptr ? simt::runner()(&asked) : simt::run(asked);
}

}  // namespace lolrt::cuda
