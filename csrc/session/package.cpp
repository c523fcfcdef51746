#include "package.h"

#include "error.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/jit/serialization/pickle.h>
#include <torch/headeronly/version.h>

#include <cctype>
#include <fstream>
#include <iterator>

namespace lolrt::session {

namespace {

constexpr int64_t kFormat = 1;

c10::Dict<c10::IValue, c10::IValue> read(const std::string &folder) {
  std::ifstream file(folder + "/stream.pt", std::ios::binary);
  expect(file.good(), "%s is no package of a model: it lacks stream.pt; make one with lolrt.aot.package", folder.c_str());
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const c10::IValue value = torch::jit::pickle_load(bytes);
  expect(value.isGenericDict(), "%s/stream.pt is not that of a package", folder.c_str());
  return value.toGenericDict();
}

std::vector<int64_t> whole_numbers(const c10::IValue &list) {
  std::vector<int64_t> found;
  for (const c10::IValue &number : list.toListRef()) found.push_back(number.toInt());
  return found;
}

// Neither torch's C++ interface nor what AOTInductor compiles is the same from version to version.
void require_same_torch(const std::string &folder, const std::string &made_by) {
  const uint64_t loaded = aoti_torch_abi_version();
  const auto part = [&](int shift) { return static_cast<int>(loaded >> shift & 255); };
  expect(loaded == TORCH_ABI_VERSION,
         "liblolrt_session is built for torch " TORCH_VERSION
         ", and this process has libtorch %d.%d.%d: build it with that torch",
         part(56), part(48), part(40));
  const std::string own = TORCH_VERSION;
  const bool same = made_by.compare(0, own.size(), own) == 0 && !std::isdigit(static_cast<unsigned char>(made_by[own.size()]));
  expect(same, "%s is a package of torch %s, and liblolrt_session is built for torch %s: make it anew with that torch",
         folder.c_str(), made_by.c_str(), own.c_str());
}

}  // namespace

Package::Package(const std::string &folder) {
  const auto values = read(folder);
  const auto of = [&](const char *name) -> c10::IValue {
    const auto found = values.find(std::string(name));
    expect(found != values.end(), "%s/stream.pt lacks %s; make the package anew", folder.c_str(), name);
    return found->value();
  };
  const int64_t format = of("format").toInt();
  expect(format == kFormat, "%s is a package of format %lld, not %lld: make it anew with this version of lolrt", folder.c_str(),
         static_cast<long long>(format), static_cast<long long>(kFormat));
  require_same_torch(folder, of("torch").toStringRef());
  dtype = of("dtype").toStringRef() == "bfloat16" ? at::kBFloat16 : at::kFloat;
  latent_size = whole_numbers(of("latent_size"));
  pages_size = whole_numbers(of("pages_size"));
  text_size = whole_numbers(of("text_size"));
  text_pages_size = whole_numbers(of("text_pages_size"));
  sink_frames = of("sink_frames").toInt();
  recent_frames = of("recent_frames").toInt();
  chunk_frames = of("chunk_frames").toInt();
  anchor_frames = of("anchor_frames").toInt();
  positions = of("positions").toStringRef();
  description = of("description").toStringRef();
  amplitude = of("amplitude").toDouble();
  context_noise = of("context_noise").toDouble();
  increments = of("increments").toTensor();
  first = {of("first_steps").toTensor(), of("first_modulations").toTensor()};
  later = {of("steps").toTensor(), of("modulations").toTensor()};
  for (const c10::IValue &x : of("text_embedding").toListRef()) text_embedding.push_back(x.toTensor());
  expect(text_embedding.size() == 4, "%s/stream.pt has another text_embedding; make the package anew", folder.c_str());
  for (const c10::IValue &name : of("vae_state").toListRef()) vae_state.push_back(name.toStringRef());
  const auto load = [&](const char *name) {
    return std::make_unique<torch::inductor::AOTIModelPackageLoader>(folder + "/" + name + ".pt2");
  };
  pass_ = load("pass");
  text_ = load("text");
  decode_first_ = load("decode_first");
  decode_ = load("decode");
}

}  // namespace lolrt::session
