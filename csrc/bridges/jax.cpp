// The ops as handlers of XLA's FFI, for lolrt/jax.py: liblolrt_jax.so, built if JAX's headers are found.
//
// A handler's buffers have the names that the attribute `names` lists, arguments first and results behind a semicolon: those of
// the op's descriptor. What is updated in place is an argument and the result that it is aliased to, and of the two the result
// counts.
#include "lolrt/lolrt.h"

#include "xla/ffi/api/ffi.h"

#include <array>
#include <string>
#include <string_view>
#include <vector>

namespace ffi = xla::ffi;

namespace {

struct Failure {
  ffi::ErrorCode code;
  std::string message;
};

lolrt_dtype dtype_of(ffi::DataType type) {
  switch (type) {
    case ffi::DataType::F64:
      return {LOLRT_CODE_FLOAT, 64, 1};
    case ffi::DataType::F32:
      return {LOLRT_CODE_FLOAT, 32, 1};
    case ffi::DataType::F16:
      return {LOLRT_CODE_FLOAT, 16, 1};
    case ffi::DataType::BF16:
      return {LOLRT_CODE_BFLOAT, 16, 1};
    case ffi::DataType::F8E4M3FN:
      return {LOLRT_CODE_FLOAT8_E4M3FN, 8, 1};
    case ffi::DataType::S64:
      return {LOLRT_CODE_INT, 64, 1};
    case ffi::DataType::S32:
      return {LOLRT_CODE_INT, 32, 1};
    case ffi::DataType::U64:
      return {LOLRT_CODE_UINT, 64, 1};
    case ffi::DataType::S8:
      return {LOLRT_CODE_INT, 8, 1};
    case ffi::DataType::U8:
      return {LOLRT_CODE_UINT, 8, 1};
    default:
      throw Failure{ffi::ErrorCode::kInvalidArgument,
                    "an array has a type of numbers that no op takes (XLA's " + std::to_string(static_cast<int>(type)) + ")"};
  }
}

template <class T>
T value(const ffi::ErrorOr<T> &found) {
  if (found.has_error()) throw Failure{ffi::ErrorCode::kInvalidArgument, std::string(found.error().message())};
  return found.value();
}

// The buffers of a call, by their names.
class Tensors {
 public:
  Tensors(std::string_view names, ffi::RemainingArgs arguments, ffi::RemainingRets results) {
    const size_t semicolon = names.find(';');
    if (semicolon == std::string_view::npos) throw Failure{ffi::ErrorCode::kInvalidArgument, "`names` lacks a semicolon"};
    add(names.substr(0, semicolon), arguments.size(), [&](size_t i) { return value(arguments.get<ffi::AnyBuffer>(i)); });
    add(names.substr(semicolon + 1), results.size(), [&](size_t i) { return *value(results.get<ffi::AnyBuffer>(i)); });
  }

  // NULL if there is none with this name.
  const lolrt_tensor *operator[](std::string_view name) const {
    for (size_t i = count_; i > 0; --i) {
      if (named_[i - 1].name == name) return &named_[i - 1].tensor;
    }
    return nullptr;
  }

 private:
  template <class Get>
  void add(std::string_view names, size_t count, const Get &get) {
    for (size_t i = 0; i < count; ++i) {
      const size_t comma = names.find(',');
      if (names.empty() || count_ == named_.size())
        throw Failure{ffi::ErrorCode::kInvalidArgument, "`names` has too few of them"};
      const ffi::AnyBuffer buffer = get(i);
      named_[count_].name = names.substr(0, comma);
      named_[count_++].tensor = {buffer.untyped_data(),
                                 {LOLRT_DEVICE_CPU, 0},
                                 static_cast<int32_t>(buffer.dimensions().size()),
                                 dtype_of(buffer.element_type()),
                                 const_cast<int64_t *>(buffer.dimensions().begin()),
                                 nullptr,
                                 0};
      names = comma == std::string_view::npos ? std::string_view() : names.substr(comma + 1);
    }
  }

  struct Named {
    std::string_view name;
    lolrt_tensor tensor;
  };
  std::array<Named, 16> named_{};
  size_t count_ = 0;
};

template <class T>
T attribute(const ffi::Dictionary &attributes, std::string_view name) {
  return value(attributes.get<T>(name));
}

template <class Op>
ffi::Error answer(const Op &op, ffi::Dictionary attributes, ffi::RemainingArgs arguments, ffi::RemainingRets results) {
  try {
    const Tensors tensors(attribute<std::string_view>(attributes, "names"), arguments, results);
    switch (op(tensors, attributes)) {
      case LOLRT_OK:
        return ffi::Error::Success();
      case LOLRT_INVALID_ARGUMENT:
        return {ffi::ErrorCode::kInvalidArgument, lolrt_last_error()};
      case LOLRT_UNSUPPORTED:
        return {ffi::ErrorCode::kUnimplemented, lolrt_last_error()};
      case LOLRT_OUT_OF_MEMORY:
        return {ffi::ErrorCode::kResourceExhausted, lolrt_last_error()};
      default:
        return {ffi::ErrorCode::kInternal, lolrt_last_error()};
    }
  } catch (const Failure &failure) {
    return {failure.code, failure.message};
  } catch (const std::bad_alloc &) {
    return {ffi::ErrorCode::kResourceExhausted, "out of memory"};
  }
}

lolrt_status kv_write(const Tensors &tensors, const ffi::Dictionary &attributes) {
  lolrt_kv_write_desc desc{};
  desc.struct_size = sizeof desc;
  desc.eps = attribute<float>(attributes, "eps");
  desc.q = tensors["q"];
  desc.k = tensors["k"];
  desc.v = tensors["v"];
  desc.q_weight = tensors["q_weight"];
  desc.k_weight = tensors["k_weight"];
  desc.rotation = tensors["rotation"];
  desc.rotation_first_channel = attribute<int64_t>(attributes, "rotation_first_channel");
  desc.q_out = tensors["q_out"];
  desc.pages = tensors["pages"];
  desc.page_table = tensors["page_table"];
  return lolrt_kv_write(&desc);
}

lolrt_status frame_attention(const Tensors &tensors, const ffi::Dictionary &attributes) {
  lolrt_frame_attention_desc desc{};
  desc.struct_size = sizeof desc;
  desc.q = tensors["q"];
  desc.pages = tensors["pages"];
  desc.page_table = tensors["page_table"];
  desc.page_tokens = attribute<int64_t>(attributes, "page_tokens");
  desc.rotation = tensors["rotation"];
  desc.bias = tensors["bias"];
  desc.out = tensors["out"];
  desc.mass = tensors["mass"];
  uint64_t bytes = 0;
  const lolrt_status status = lolrt_frame_attention_workspace(&desc, &bytes);
  if (status != LOLRT_OK) return status;
  // Belongs to the thread, which keeps it for its next call: its size depends on the number of threads, which XLA does not know
  // when it compiles.
  constexpr uint64_t alignment = 64;
  static thread_local std::vector<uint8_t> workspace;
  if (workspace.size() < bytes + alignment) workspace.resize(bytes + alignment);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(workspace.data());
  desc.workspace = reinterpret_cast<void *>((begin + alignment - 1) / alignment * alignment);
  desc.workspace_bytes = bytes;
  return lolrt_frame_attention(&desc);
}

lolrt_status modulated_norm(const Tensors &tensors, const ffi::Dictionary &attributes) {
  lolrt_modulated_norm_desc desc{};
  desc.struct_size = sizeof desc;
  desc.eps = attribute<float>(attributes, "eps");
  desc.x = tensors["x"];
  desc.residual = tensors["residual"];
  desc.gate = tensors["gate"];
  desc.scale = tensors["scale"];
  desc.shift = tensors["shift"];
  desc.out = tensors["out"];
  return lolrt_modulated_norm(&desc);
}

lolrt_status gelu(const Tensors &tensors, const ffi::Dictionary &) {
  lolrt_gelu_desc desc{};
  desc.struct_size = sizeof desc;
  desc.x = tensors["x"];
  return lolrt_gelu(&desc);
}

lolrt_status sampler_step(const Tensors &tensors, const ffi::Dictionary &attributes) {
  lolrt_sampler_step_desc desc{};
  desc.struct_size = sizeof desc;
  desc.level = attribute<double>(attributes, "level");
  desc.after = attribute<double>(attributes, "after");
  desc.sample = tensors["sample"];
  desc.velocity = tensors["velocity"];
  desc.noise = tensors["noise"];
  desc.out = tensors["out"];
  return lolrt_sampler_step(&desc);
}

}  // namespace

#define LOLRT_JAX(op)                                                                                                   \
  static ffi::Error answer_##op(ffi::Dictionary attributes, ffi::RemainingArgs arguments, ffi::RemainingRets results) { \
    return answer(op, attributes, arguments, results);                                                                  \
  }                                                                                                                     \
  extern "C" __attribute__((visibility("default"))) XLA_FFI_Error *lolrt_jax_##op(XLA_FFI_CallFrame *call_frame) {      \
    static auto *handler = ffi::Ffi::Bind().Attrs().RemainingArgs().RemainingRets().To(answer_##op).release();          \
    return handler->Call(call_frame);                                                                                   \
  }

// The version of XLA's FFI that the handlers were built for, major and minor.
extern "C" __attribute__((visibility("default"))) const int32_t lolrt_jax_api[2] = {XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};

LOLRT_JAX(kv_write)
LOLRT_JAX(frame_attention)
LOLRT_JAX(modulated_norm)
LOLRT_JAX(gelu)
LOLRT_JAX(sampler_step)
