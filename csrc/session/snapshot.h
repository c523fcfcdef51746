// Snapshots, in the format of lolrt/session/snapshot.py: what one of the two has saved, the other goes on from.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

namespace lolrt::session {

struct Snapshot {
  std::string description;  // JSON: config, format, kind, model, prompt, run
  std::map<std::string, at::Tensor> tensors;

  // Throws Failure if the file is no snapshot, or damaged.
  static Snapshot read(const std::string &path);
  // The file is the old one or the new one, whatever happens meanwhile. Throws Failure.
  void write(const std::string &path) const;
};

}  // namespace lolrt::session
