// Fuzzes the functions for hosts that speak TVM-FFI: whatever arguments a host passes, of whatever types and however many, a call
// computes, or refuses with an error that says why, and touches nothing else. Tensors are those of tensors.h, as DLTensors and as
// objects; now and then an argument is something else altogether.
//
//     g++ -std=c++17 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -DSTANDALONE -rdynamic -Icsrc/include -Icsrc
//       -DLOLRT_VERSION='"0"' -DLOLRT_SHARED_HEADERS='"0"' fuzz/tvm_ffi.cpp csrc/bridges/tvm_ffi.cpp csrc/core/*.cpp
//       csrc/cpu/scalar.cpp -ldl -o build/fuzz_tvm_ffi
//     build/fuzz_tvm_ffi CALLS SEED
//
// With clang++ -fsanitize=fuzzer,address,undefined and without -DSTANDALONE, libFuzzer draws the bytes.
#include "calls.h"

#include <string>

using namespace fuzz;

long calls = 0;

namespace {

std::string error_kind, error_text;

// A TVMFFIAny, and a TVMFFIObject with the DLTensor that follows it in a tensor.
struct Any {
  int32_t type = 0;
  uint32_t zero_padding = 0;
  uint64_t value = 0;
};
struct Object {
  uint64_t reference_count;
  int32_t type;
  uint32_t padding;
  void *deleter;
  lolrt_tensor tensor;
};
enum Type { kNone, kInteger, kBoolean, kReal, kDtype = 5, kDevice, kDlTensor, kTensor = 70 };

using Function = int (*)(void *, const Any *, int32_t, Any *);

}  // namespace

// The two functions of a host's runtime that are looked up in the process.
extern "C" void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) { error_kind = kind, error_text = message; }
extern "C" void *TVMFFIEnvGetStream(int32_t, int32_t) { return nullptr; }

#define OPS(op)                                                                                                                \
  op(kv_write) op(frame_attention) op(frame_attention_workspace) op(modulated_norm) op(gelu) op(sampler_step) op(channel_norm) \
      op(conv3d) op(rotation_table) op(normal) op(page_elements)
#define DECLARE(op) extern "C" int __tvm_ffi_##op(void *, const Any *, int32_t, Any *);
OPS(DECLARE)

namespace {

// The arguments of a call, as a host passes them.
class Passed {
 public:
  Passed(Bytes &bytes, const Call &call) : bytes_(bytes), call_(call) {}

  void add_all() {
    for (const Argument &argument : call_.arguments()) add(argument);
  }
  Passed &tensor(const lolrt_tensor *view) {
    if (view == nullptr) return add(bytes_.next() % 2 ? kNone : kDlTensor, 0);
    if (bytes_.next() % 2) return add(kDlTensor, reinterpret_cast<uintptr_t>(view));
    return add(kTensor, reinterpret_cast<uintptr_t>(&objects_.emplace_back(Object{1, kTensor, 0, nullptr, *view})));
  }
  Passed &add(int32_t type, uint64_t value) {
    if (bytes_.rarely()) {
      replaced_ = true;
      type = static_cast<int32_t>(bytes_.below(80));
      // No callee can tell a pointer to anything from one to a tensor.
      value = type == kDlTensor || type == kTensor ? 0 : static_cast<uint64_t>(bytes_.number());
    }
    given_.push_back({type, 0, value});
    return *this;
  }

  Any operator()(Function function) {
    // In memory of their own, and as many as the callee is told of.
    const auto count =
        static_cast<size_t>(bytes_.rarely() ? bytes_.below(static_cast<int64_t>(given_.size()) + 1) : given_.size());
    const std::unique_ptr<Any[]> arguments(new Any[count]);
    std::copy_n(given_.begin(), count, arguments.get());
    error_kind.clear(), error_text.clear();
    Any result;
    const int status = function(nullptr, arguments.get(), static_cast<int32_t>(count), &result);
    const bool told = (error_kind == "ValueError" || error_kind == "TypeError" || error_kind == "RuntimeError" ||
                       error_kind == "MemoryError") &&
                      !error_text.empty();
    if (status == 0 ? !error_kind.empty() : status != -1 || !told) fail(error_kind.c_str(), error_text.c_str());
    if (status == 0 && !replaced_) call_.tensors().check_taken();
    ++calls;
    return status == 0 ? result : Any{};
  }

 private:
  void add(const Argument &argument) {
    uint64_t bits = static_cast<uint64_t>(argument.integer);
    if (argument.kind == Argument::kTensor) {
      tensor(argument.tensor);
      return;
    }
    if (argument.kind == Argument::kReal) std::memcpy(&bits, &argument.real, sizeof bits);
    add(argument.kind == Argument::kReal ? kReal : kInteger, bits);
  }

  Bytes &bytes_;
  const Call &call_;
  std::list<Object> objects_;
  std::vector<Any> given_;
  bool replaced_ = false;
};

void rotation_table(Bytes &bytes, Call &call, lolrt_dtype) {
  const int64_t pages = 1 + bytes.below(4), frames = 1 + bytes.below(4), heads = 1 + bytes.below(3), pairs = 1 + bytes.below(9);
  call.tensor("turns_per_frame", kUint64, {heads, pairs}).tensor("offsets_frames", kInt64, {pages, frames});
  call.tensor("out", kFloat32, {pages, frames, heads, pairs, 2});
}

void normal(Bytes &bytes, Call &call, lolrt_dtype) {
  call.integer("seed", bytes.number()).integer("frame", bytes.number()).integer("step", bytes.below(9));
  call.tensor("out", kFloat32, {1 + bytes.below(9), 1 + bytes.below(9)});
}

void page_elements(Bytes &bytes, Call &call, lolrt_dtype) {
  call.integer("tokens", bytes.number()).integer("heads", bytes.number()).integer("dim", bytes.number());
}

struct Target {
  Op op;
  Function function;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static constexpr Target targets[] = {{{"kv_write", kv_write}, __tvm_ffi_kv_write},
                                       {{"frame_attention", frame_attention}, __tvm_ffi_frame_attention},
                                       {{"modulated_norm", modulated_norm}, __tvm_ffi_modulated_norm},
                                       {{"gelu", gelu}, __tvm_ffi_gelu},
                                       {{"sampler_step", sampler_step}, __tvm_ffi_sampler_step},
                                       {{"channel_norm", channel_norm}, __tvm_ffi_channel_norm},
                                       {{"conv3d", conv3d}, __tvm_ffi_conv3d},
                                       {{"rotation_table", rotation_table}, __tvm_ffi_rotation_table},
                                       {{"normal", normal}, __tvm_ffi_normal},
                                       {{"page_elements", page_elements}, __tvm_ffi_page_elements}};
  static const bool one_thread = lolrt_set_threads(1) == LOLRT_OK;
  if (!one_thread) return 1;
  Bytes bytes(data, size);
  const uint8_t choice = bytes.next();
  const Target &target = targets[choice % std::size(targets)];
  const lolrt_dtype dtype = choice & 128 ? kBfloat16 : kFloat32;
  Call call(bytes);
  target.op.make(bytes, call, dtype);
  Passed passed(bytes, call);
  if (target.function == __tvm_ffi_page_elements) {
    uint64_t bits = 0;
    std::memcpy(&bits, &dtype, sizeof dtype);
    passed.add(kDevice, 1).add(kDtype, bits);
  }
  passed.add_all();
  if (target.function == __tvm_ffi_frame_attention) {
    const auto room = static_cast<int64_t>(passed(__tvm_ffi_frame_attention_workspace).value);
    passed.tensor(call.tensors()(kUint8, {room < 0 || room > (1 << 26) ? 0 : room}));
  }
  passed(target.function);
  return 0;
}
