// The ops for hosts that speak TVM-FFI, such as FlashInfer and CuTe DSL: one function `__tvm_ffi_<op>` per op. Its arguments are
// the fields of the op's descriptor in the same order, without `struct_size` and `stream`; tensors are passed as they are.
//
// The structures are those of TVM-FFI's stable C ABI, 0.1; a host of another version is refused. The host's runtime is neither
// linked nor a build requirement: the few of its functions that are needed are looked up in the process that it has loaded us
// into.
#include "core/status.h"

#include <dlfcn.h>

#include <cstddef>

using namespace lolrt;

namespace {

// A TVMFFIAny.
struct Any {
  enum Type : int32_t { none = 0, integer = 1, boolean = 2, real = 3, dtype = 5, device = 6, dltensor = 7, tensor = 70 };

  int32_t type;
  uint32_t zero_padding;
  union {
    int64_t as_integer;
    double as_real;
    void *as_pointer;
    lolrt_dtype as_dtype;
    lolrt_device as_device;
  };
};
static_assert(sizeof(Any) == 16 && offsetof(Any, as_integer) == 8);

// A TVMFFIObject, the header of all objects. In an object of type `tensor` the DLTensor follows it.
struct Object {
  uint64_t reference_count;
  int32_t type;
  uint32_t padding;
  void (*deleter)(void *self, int flags);
};
static_assert(sizeof(Object) == 24);

#if defined(__APPLE__)
constexpr char kRuntime[] = "libtvm_ffi.dylib";
#else
constexpr char kRuntime[] = "libtvm_ffi.so";
#endif

// A function of the host's runtime, or NULL.
template <class Function>
Function host_function(const char *name) {
  void *found = dlsym(RTLD_DEFAULT, name);
  if (found == nullptr) {
    // Hosts may load their runtime with local symbols.
    void *runtime = dlopen(kRuntime, RTLD_NOLOAD | RTLD_LAZY);
    if (runtime != nullptr) found = dlsym(runtime, name);
  }
  return reinterpret_cast<Function>(found);
}

// A TVMFFIVersion.
struct Version {
  uint32_t major, minor, patch;
};

// Fails in a host whose structures may be others. One that does not tell its version is taken for 0.1.
void require_known_host(const char *op) {
  static const Version host = [] {
    Version found{0, 1, 0};
    const auto tell = host_function<void (*)(Version *)>("TVMFFIGetVersion");
    if (tell != nullptr) tell(&found);
    return found;
  }();
  if (host.major == 0 && host.minor == 1) return;
  fail(
      LOLRT_UNSUPPORTED,
      "%s: lolrt %s is built for TVM-FFI 0.1, and this process has TVM-FFI %u.%u.%u: install apache-tvm-ffi 0.1 or another lolrt",
      op, lolrt_version(), host.major, host.minor, host.patch);
}

// Reads the arguments of a call one after another. A wrong type is a mistake in the caller's program, for which hosts have a
// separate error.
class Arguments {
 public:
  struct WrongType {};

  Arguments(const char *op, const Any *arguments, int32_t count) : op_(op), next_(arguments), count_(count) {}

  void expect(int32_t count) const {
    if (count_ == count) return;
    set_error_text("%s: expected %d arguments, got %d", op_, count, count_);
    throw WrongType{};
  }
  const lolrt_tensor *tensor(const char *name) {
    if (is_none(*next_)) refuse(*next_, name, "a tensor");
    return optional_tensor(name, "a tensor");
  }
  const lolrt_tensor *optional_tensor(const char *name, const char *expected = "a tensor or none") {
    const Any &argument = *next_++;
    const lolrt_tensor *found = nullptr;
    if (is_none(argument)) return nullptr;
    if (argument.type == Any::dltensor) {
      found = static_cast<const lolrt_tensor *>(argument.as_pointer);
    } else if (argument.type == Any::tensor) {
      found = reinterpret_cast<const lolrt_tensor *>(static_cast<const Object *>(argument.as_pointer) + 1);
    } else {
      refuse(argument, name, expected);
    }
    if (found->device.type == LOLRT_DEVICE_CUDA) cuda_ = found->device;
    return found;
  }
  int64_t integer(const char *name) {
    const Any &argument = *next_++;
    if (argument.type != Any::integer && argument.type != Any::boolean) refuse(argument, name, "a whole number");
    return argument.as_integer;
  }
  double real(const char *name) {
    const Any &argument = *next_++;
    if (argument.type == Any::real) return argument.as_real;
    if (argument.type != Any::integer) refuse(argument, name, "a number");
    return static_cast<double>(argument.as_integer);
  }
  lolrt_dtype dtype(const char *name) {
    const Any &argument = *next_++;
    if (argument.type != Any::dtype) refuse(argument, name, "a data type");
    return argument.as_dtype;
  }
  lolrt_device device(const char *name) {
    const Any &argument = *next_++;
    if (argument.type != Any::device) refuse(argument, name, "a device");
    return argument.as_device;
  }
  // The host's current stream on the tensors' device. Call it after the tensors were read.
  void *stream() const {
    if (cuda_.type != LOLRT_DEVICE_CUDA) return nullptr;
    static const auto current = host_function<void *(*)(int32_t type, int32_t id)>("TVMFFIEnvGetStream");
    return current == nullptr ? nullptr : current(cuda_.type, cuda_.id);
  }

 private:
  static bool is_none(const Any &argument) {
    const bool pointer = argument.type == Any::dltensor || argument.type == Any::tensor;
    return argument.type == Any::none || (pointer && argument.as_pointer == nullptr);
  }
  [[noreturn]] void refuse(const Any &argument, const char *name, const char *expected) const {
    if (is_none(argument)) {
      set_error_text("%s: %s: expected %s, got none", op_, name, expected);
    } else {
      set_error_text("%s: %s: expected %s, got an argument of TVM-FFI's type %d", op_, name, expected, argument.type);
    }
    throw WrongType{};
  }

  const char *op_;
  const Any *next_;
  int32_t count_;
  lolrt_device cuda_{};
};

// Runs body(arguments, result) and returns 0, or -1 with an error set in the host, as the ABI requires.
template <class Body>
int answer(const char *op, const Any *arguments, int32_t count, int32_t expected, Any *result, const Body &body) noexcept {
  const char *kind = "TypeError";
  try {
    require_known_host(op);
    Arguments given(op, arguments, count);
    given.expect(expected);
    *result = Any{Any::none, 0, {0}};
    const lolrt_status status = body(given, *result);
    if (status == LOLRT_OK) return 0;
    kind = status == LOLRT_INVALID_ARGUMENT ? "ValueError" : status == LOLRT_OUT_OF_MEMORY ? "MemoryError" : "RuntimeError";
  } catch (const Arguments::WrongType &) {
  } catch (const Failure &) {
    kind = "RuntimeError";
  }
  static const auto raise = host_function<void (*)(const char *kind, const char *message)>("TVMFFIErrorSetRaisedFromCStr");
  if (raise != nullptr) raise(kind, lolrt_last_error());
  return -1;
}

lolrt_frame_attention_desc attention_of(Arguments &given) {
  lolrt_frame_attention_desc desc{};
  desc.struct_size = sizeof desc;
  desc.scale = static_cast<float>(given.real("scale"));
  desc.q = given.tensor("q");
  desc.pages = given.tensor("pages");
  desc.page_table = given.tensor("page_table");
  desc.page_tokens = given.integer("page_tokens");
  desc.rotation = given.optional_tensor("rotation");
  desc.bias = given.optional_tensor("bias");
  desc.out = given.tensor("out");
  desc.mass = given.optional_tensor("mass");
  desc.stream = given.stream();
  return desc;
}

constexpr uint64_t kAlignment = 64;  // bytes, of a workspace; a tensor of the host may have less

// The bytes of a contiguous tensor of bytes, from its first aligned one on.
lolrt_status set_workspace(const lolrt_tensor *tensor, lolrt_frame_attention_desc &desc) {
  if (tensor == nullptr) return LOLRT_OK;
  if (tensor->ndim != 1 || tensor->shape == nullptr || tensor->shape[0] < 0 ||
      (tensor->data == nullptr && tensor->shape[0] > 0) || tensor->dtype.bits != 8 || tensor->dtype.lanes != 1 ||
      (tensor->strides && tensor->shape[0] > 1 && tensor->strides[0] != 1) || tensor->device.type != desc.q->device.type) {
    set_error_text("frame_attention: workspace: expected a contiguous uint8 tensor of one dimension, where q is");
    return LOLRT_INVALID_ARGUMENT;
  }
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor->data) + tensor->byte_offset;
  const uint64_t padding = -begin % kAlignment, bytes = static_cast<uint64_t>(tensor->shape[0]);
  desc.workspace = reinterpret_cast<void *>(begin + padding);
  desc.workspace_bytes = bytes > padding ? bytes - padding : 0;
  return LOLRT_OK;
}

}  // namespace

#define LOLRT_TVM_FFI(op, count)                                                                       \
  static lolrt_status call_##op(Arguments &given, Any &result);                                        \
  extern "C" LOLRT_API int __tvm_ffi_##op(void *, const Any *arguments, int32_t number, Any *result) { \
    return answer(#op, arguments, number, count, result, call_##op);                                   \
  }                                                                                                    \
  static lolrt_status call_##op([[maybe_unused]] Arguments &given, [[maybe_unused]] Any &result)

LOLRT_TVM_FFI(kv_write, 11) {
  lolrt_kv_write_desc desc{};
  desc.struct_size = sizeof desc;
  desc.eps = static_cast<float>(given.real("eps"));
  desc.q = given.optional_tensor("q");
  desc.k = given.optional_tensor("k");
  desc.v = given.optional_tensor("v");
  desc.q_weight = given.optional_tensor("q_weight");
  desc.k_weight = given.optional_tensor("k_weight");
  desc.rotation = given.optional_tensor("rotation");
  desc.rotation_first_channel = given.integer("rotation_first_channel");
  desc.q_out = given.optional_tensor("q_out");
  desc.pages = given.optional_tensor("pages");
  desc.page_table = given.optional_tensor("page_table");
  desc.stream = given.stream();
  return lolrt_kv_write(&desc);
}

// The bytes that a workspace must have, with enough room to align any tensor of bytes.
LOLRT_TVM_FFI(frame_attention_workspace, 9) {
  const lolrt_frame_attention_desc desc = attention_of(given);
  uint64_t bytes = 0;
  const lolrt_status status = lolrt_frame_attention_workspace(&desc, &bytes);
  result.type = Any::integer;
  result.as_integer = static_cast<int64_t>(bytes + kAlignment - 1);
  return status;
}

LOLRT_TVM_FFI(frame_attention, 10) {
  lolrt_frame_attention_desc desc = attention_of(given);
  const lolrt_status status = set_workspace(given.optional_tensor("workspace"), desc);
  return status == LOLRT_OK ? lolrt_frame_attention(&desc) : status;
}

LOLRT_TVM_FFI(modulated_norm, 7) {
  lolrt_modulated_norm_desc desc{};
  desc.struct_size = sizeof desc;
  desc.eps = static_cast<float>(given.real("eps"));
  desc.x = given.tensor("x");
  desc.residual = given.optional_tensor("residual");
  desc.gate = given.optional_tensor("gate");
  desc.scale = given.tensor("scale");
  desc.shift = given.tensor("shift");
  desc.out = given.tensor("out");
  desc.stream = given.stream();
  return lolrt_modulated_norm(&desc);
}

LOLRT_TVM_FFI(gelu, 1) {
  lolrt_gelu_desc desc{};
  desc.struct_size = sizeof desc;
  desc.x = given.tensor("x");
  desc.stream = given.stream();
  return lolrt_gelu(&desc);
}

LOLRT_TVM_FFI(sampler_step, 6) {
  lolrt_sampler_step_desc desc{};
  desc.struct_size = sizeof desc;
  desc.level = given.real("level");
  desc.after = given.real("after");
  desc.sample = given.tensor("sample");
  desc.velocity = given.tensor("velocity");
  desc.noise = given.optional_tensor("noise");
  desc.out = given.tensor("out");
  desc.stream = given.stream();
  return lolrt_sampler_step(&desc);
}

LOLRT_TVM_FFI(channel_norm, 4) {
  lolrt_channel_norm_desc desc{};
  desc.struct_size = sizeof desc;
  desc.silu = given.integer("silu") != 0;
  desc.x = given.tensor("x");
  desc.gamma = given.tensor("gamma");
  desc.out = given.tensor("out");
  return lolrt_channel_norm(&desc);
}

LOLRT_TVM_FFI(conv3d, 6) {
  lolrt_conv3d_desc desc{};
  desc.struct_size = sizeof desc;
  desc.past = given.optional_tensor("past");
  desc.x = given.tensor("x");
  desc.weight = given.tensor("weight");
  desc.bias = given.tensor("bias");
  desc.residual = given.optional_tensor("residual");
  desc.out = given.tensor("out");
  return lolrt_conv3d(&desc);
}

LOLRT_TVM_FFI(rotation_table, 3) {
  const lolrt_tensor *turns = given.tensor("turns_per_frame");
  const lolrt_tensor *offsets = given.tensor("offsets_frames");
  return lolrt_rotation_table(turns, offsets, given.tensor("out"));
}

LOLRT_TVM_FFI(normal, 4) {
  const auto seed = static_cast<uint64_t>(given.integer("seed"));
  const int64_t frame = given.integer("frame"), step = given.integer("step");
  if (step != static_cast<int32_t>(step)) {
    set_error_text("normal: step is %lld; expected a number of 32 bits", static_cast<long long>(step));
    return LOLRT_INVALID_ARGUMENT;
  }
  return lolrt_normal(seed, frame, static_cast<int32_t>(step), given.tensor("out"));
}

// (device, dtype, tokens, heads, dim)
LOLRT_TVM_FFI(page_elements, 5) {
  const lolrt_device device = given.device("device");
  const lolrt_dtype dtype = given.dtype("dtype");
  const int64_t tokens = given.integer("tokens"), heads = given.integer("heads"), dim = given.integer("dim");
  result.type = Any::integer;
  return lolrt_page_elements(device.type, dtype, tokens, heads, dim, &result.as_integer);
}
