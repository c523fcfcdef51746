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
#include "tensors.h"

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

class Call {
 public:
  explicit Call(Bytes &bytes) : bytes_(bytes), tensors_(bytes) {}

  Call &tensor(lolrt_dtype dtype, std::initializer_list<int64_t> right, bool given = true) {
    const lolrt_tensor *view = given ? tensors_(dtype, right) : nullptr;
    if (view == nullptr) return add(bytes_.next() % 2 ? kNone : kDlTensor, 0);
    if (bytes_.next() % 2) return add(kDlTensor, reinterpret_cast<uintptr_t>(view));
    return add(kTensor, reinterpret_cast<uintptr_t>(&objects_.emplace_back(Object{1, kTensor, 0, nullptr, *view})));
  }
  Call &integer(int64_t right) { return add(kInteger, static_cast<uint64_t>(bytes_.or_number(right))); }
  Call &real(double right) {
    uint64_t bits = 0;
    std::memcpy(&bits, &right, sizeof bits);
    return add(kReal, bytes_.rarely() ? static_cast<uint64_t>(bytes_.number()) : bits);
  }
  Call &add(int32_t type, uint64_t value) {
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
    if (status == 0 ? !error_kind.empty() : status != -1 || !told) {
      std::fprintf(stderr, "status %d: %s: %s\n", status, error_kind.c_str(), error_text.c_str());
      std::abort();
    }
    if (status == 0 && !replaced_) tensors_.check_taken();
    ++calls;
    return status == 0 ? result : Any{};
  }

 private:
  Bytes &bytes_;
  Tensors tensors_;
  std::list<Object> objects_;
  std::vector<Any> given_;
  bool replaced_ = false;
};

void fuzz_kv_write(Bytes &bytes, lolrt_dtype dtype) {
  const int64_t frames = 1 + bytes.below(3), tokens = 1 + bytes.below(20), heads = 1 + bytes.below(2),
                dim = 2 * (1 + bytes.below(20));
  int64_t elements = 1;
  lolrt_page_elements(LOLRT_DEVICE_CPU, dtype, tokens, heads, dim, &elements);
  const auto rows = {frames, tokens, heads, dim};
  const bool q = bytes.next() % 2;
  Call call(bytes);
  call.real(1e-6).tensor(dtype, rows, q).tensor(dtype, rows).tensor(dtype, rows);
  call.tensor(dtype, {heads, dim}, q)
      .tensor(dtype, {heads, dim}, bytes.next() % 2)
      .tensor(kFloat32, {tokens, 1, 2}, bytes.next() % 2);
  call.integer(0).tensor(dtype, rows, q).tensor(dtype, {frames + 1, elements}).tensor(kInt32, {frames});
  call(__tvm_ffi_kv_write);
}

void fuzz_frame_attention(Bytes &bytes, lolrt_dtype dtype) {
  const int64_t frames = 1 + bytes.below(3), tokens = 1 + bytes.below(20), heads = 1 + bytes.below(2),
                dim = 2 * (1 + bytes.below(20));
  const int64_t page_tokens = 1 + bytes.below(20), pages = 1 + bytes.below(3);
  int64_t elements = 1;
  lolrt_page_elements(LOLRT_DEVICE_CPU, dtype, page_tokens, heads, dim, &elements);
  const bool with_rotation = bytes.next() % 2, with_bias = bytes.next() % 2, with_mass = bytes.next() % 2;
  Call call(bytes);
  call.real(0).tensor(dtype, {frames, tokens, heads, dim}).tensor(dtype, {3, elements}).tensor(kInt32, {pages});
  call.integer(page_tokens)
      .tensor(kFloat32, {pages, frames, heads, 1, 2}, with_rotation)
      .tensor(kFloat32, {pages, heads}, with_bias);
  call.tensor(dtype, {frames, tokens, heads, dim}).tensor(kFloat32, {pages, frames, heads}, with_mass);
  const auto room = static_cast<int64_t>(call(__tvm_ffi_frame_attention_workspace).value);
  call.tensor(kUint8, {room < 0 || room > (1 << 26) ? 0 : room})(__tvm_ffi_frame_attention);
}

void fuzz_modulated_norm(Bytes &bytes, lolrt_dtype dtype) {
  const int64_t frames = 1 + bytes.below(3), tokens = 1 + bytes.below(9), channels = 1 + bytes.below(70);
  const auto rows = {frames, tokens, channels};
  const bool gated = bytes.next() % 2;
  Call call(bytes);
  call.real(1e-6).tensor(dtype, rows).tensor(dtype, rows, gated).tensor(kFloat32, {frames, channels}, gated);
  call.tensor(kFloat32, {1, channels}).tensor(kFloat32, {frames, channels}).tensor(dtype, rows)(__tvm_ffi_modulated_norm);
}

void fuzz_gelu(Bytes &bytes, lolrt_dtype dtype) {
  const auto rows = {1 + bytes.below(3), 1 + bytes.below(9), 1 + bytes.below(70)};
  Call(bytes).tensor(dtype, rows)(__tvm_ffi_gelu);
}

void fuzz_sampler_step(Bytes &bytes, lolrt_dtype) {
  const auto size = {1 + bytes.below(200)};
  Call call(bytes);
  call.real(0.9).real(0.5).tensor(kFloat32, size).tensor(kFloat32, size).tensor(kFloat32, size).tensor(kFloat32, size);
  call(__tvm_ffi_sampler_step);
}

void fuzz_channel_norm(Bytes &bytes, lolrt_dtype dtype) {
  const int64_t frames = 1 + bytes.below(2), rows = 1 + bytes.below(4), columns = 1 + bytes.below(4),
                channels = 1 + bytes.below(40), margin = bytes.below(3);
  Call call(bytes);
  call.integer(1).tensor(dtype, {frames, rows, columns, channels}).tensor(kFloat32, {channels});
  call.tensor(kFloat32, {frames, rows + 2 * margin, columns + 2 * margin, channels})(__tvm_ffi_channel_norm);
}

void fuzz_conv3d(Bytes &bytes, lolrt_dtype) {
  const int64_t taps = 1 + bytes.below(3), side = 1 + bytes.below(3), in = 1 + bytes.below(20), out = 1 + bytes.below(40);
  const int64_t frames = 1 + bytes.below(2), rows = side + bytes.below(3), columns = side + bytes.below(3),
                blocks = (out + 15) / 16;
  const auto result = {frames, rows - side + 1, columns - side + 1, out};
  Call call(bytes);
  call.tensor(kFloat32, {taps - 1, rows, columns, in}, taps > 1).tensor(kFloat32, {frames, rows, columns, in});
  call.tensor(kFloat32, {blocks, taps, side, side, in, 16}).tensor(kFloat32, {blocks, 16}).tensor(kFloat32, result);
  call.tensor(kFloat32, result)(__tvm_ffi_conv3d);
}

void fuzz_tables(Bytes &bytes, lolrt_dtype) {
  const int64_t pages = 1 + bytes.below(4), frames = 1 + bytes.below(4), heads = 1 + bytes.below(3), pairs = 1 + bytes.below(9);
  Call call(bytes);
  call.tensor(kUint64, {heads, pairs}).tensor(kInt64, {pages, frames}).tensor(kFloat32, {pages, frames, heads, pairs, 2});
  call(__tvm_ffi_rotation_table);
}

void fuzz_normal(Bytes &bytes, lolrt_dtype) {
  Call call(bytes);
  call.integer(bytes.number()).integer(bytes.number()).integer(bytes.below(9));
  call.tensor(kFloat32, {1 + bytes.below(9), 1 + bytes.below(9)})(__tvm_ffi_normal);
}

void fuzz_page_elements(Bytes &bytes, lolrt_dtype dtype) {
  uint64_t bits = 0;
  std::memcpy(&bits, &dtype, sizeof dtype);
  Call call(bytes);
  call.add(kDevice, 1).add(kDtype, bits).integer(bytes.number()).integer(bytes.number()).integer(bytes.number());
  call(__tvm_ffi_page_elements);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static constexpr void (*targets[])(Bytes &, lolrt_dtype) = {
      fuzz_kv_write,     fuzz_frame_attention, fuzz_modulated_norm, fuzz_gelu,   fuzz_sampler_step,
      fuzz_channel_norm, fuzz_conv3d,          fuzz_tables,         fuzz_normal, fuzz_page_elements};
  static const bool one_thread = lolrt_set_threads(1) == LOLRT_OK;
  if (!one_thread) return 1;
  Bytes bytes(data, size);
  const uint8_t choice = bytes.next();
  targets[choice % std::size(targets)](bytes, choice & 128 ? kBfloat16 : kFloat32);
  return 0;
}
