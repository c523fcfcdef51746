#include "core/tensor.h"

#include "core/status.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <iterator>
#include <string>

namespace lolrt {
namespace {

struct TypeInfo {
  const char *name;
  uint8_t code;
  uint8_t bits;
};

// Indexed by DType.
constexpr TypeInfo kTypes[] = {{"float32", LOLRT_CODE_FLOAT, 32}, {"bfloat16", LOLRT_CODE_BFLOAT, 16},
                               {"float16", LOLRT_CODE_FLOAT, 16}, {"float8_e4m3fn", LOLRT_CODE_FLOAT8_E4M3FN, 8},
                               {"int8", LOLRT_CODE_INT, 8},       {"uint8", LOLRT_CODE_UINT, 8},
                               {"int32", LOLRT_CODE_INT, 32},     {"int64", LOLRT_CODE_INT, 64},
                               {"uint64", LOLRT_CODE_UINT, 64}};

const TypeInfo &info(DType dtype) { return kTypes[static_cast<int>(dtype)]; }

bool same(lolrt_dtype dtype, DType expected) {
  return dtype.code == info(expected).code && dtype.bits == info(expected).bits && dtype.lanes == 1;
}

std::string type_name(lolrt_dtype dtype) {
  if (same(dtype, DType::float8_e4m3fn)) return info(DType::float8_e4m3fn).name;
  static constexpr const char *codes[] = {"int", "uint", "float", "handle", "bfloat", "complex", "bool"};  // DLPack's, in order
  std::string name = dtype.code < std::size(codes) ? codes[dtype.code] : "type " + std::to_string(dtype.code) + " of bits ";
  name += std::to_string(dtype.bits);
  return dtype.lanes == 1 ? name : name + "x" + std::to_string(dtype.lanes);
}

// Of the sizes or strides of a tensor; more dimensions than any library has are not looked for.
std::string list(const int64_t *values, int count) {
  constexpr int most = 64;
  if (count > most) return "of " + std::to_string(count) + " dimensions";
  std::string text = "[";
  for (int i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + "]";
}

std::string expected_shape(std::initializer_list<Dim> dims) {
  std::string text = "[";
  for (const Dim &dim : dims) {
    if (text.size() > 1) text += ", ";
    text += dim.name;
    if (dim.size != Dim::any) text += "=" + std::to_string(dim.size);
  }
  return text + "]";
}

bool shape_fits(const lolrt_tensor &tensor, std::initializer_list<Dim> dims) {
  if (tensor.ndim != static_cast<int32_t>(dims.size()) || tensor.shape == nullptr) return false;
  const int64_t *size = tensor.shape;
  for (const Dim &dim : dims) {
    if (dim.size == Dim::any ? *size < 1 : *size != dim.size) return false;
    ++size;
  }
  return true;
}

uint64_t magnitude(int64_t stride) { return stride < 0 ? 0 - static_cast<uint64_t>(stride) : static_cast<uint64_t>(stride); }

// Steps along a dimension, by the elements that each skips.
struct Steps {
  uint64_t stride, count;
};

// Whether each dimension's steps are wider than all that the dimensions with narrower ones span: then no two elements share
// memory. Dimensions that interleave are refused, though some of them would not.
bool elements_apart(const View &view, int dims) {
  std::array<Steps, View::max_dims> steps{};
  auto end = steps.begin();  // narrow ones first
  for (int dim = 0; dim < dims; ++dim) {
    if (view.size(dim) == 1) continue;
    const Steps step{magnitude(view.stride(dim)), static_cast<uint64_t>(view.size(dim) - 1)};
    const auto wider = std::find_if(steps.begin(), end, [&](const Steps &other) { return other.stride > step.stride; });
    std::move_backward(wider, end, end + 1);
    *wider = step;
    ++end;
  }
  uint64_t span = 0;
  for (auto step = steps.begin(); step != end; ++step) {
    if (step->stride <= span) return false;
    span += step->count * step->stride;
  }
  return true;
}

}  // namespace

DType floating_type(const char *what, int32_t device_type, lolrt_dtype dtype) {
  const bool cuda = device_type == LOLRT_DEVICE_CUDA;
  for (DType type : {DType::bfloat16, cuda ? DType::float16 : DType::float32}) {
    if (same(dtype, type)) return type;
  }
  fail(LOLRT_INVALID_ARGUMENT, "%s: expected %s, got %s", what, cuda ? "bfloat16 or float16" : "float32 or bfloat16",
       type_name(dtype).c_str());
}

DType page_type(const char *what, int32_t device_type, lolrt_dtype dtype) {
  const bool cuda = device_type == LOLRT_DEVICE_CUDA;
  if (same(dtype, DType::float8_e4m3fn)) {
    if (cuda) return DType::float8_e4m3fn;
    fail(LOLRT_UNSUPPORTED, "%s: there are pages of float8_e4m3fn on CUDA alone; on the CPU they are float32, bfloat16 or int8",
         what);
  }
  if (same(dtype, DType::int8)) {
    if (!cuda) return DType::int8;
    fail(LOLRT_UNSUPPORTED, "%s: there are pages of int8 on the CPU alone; on CUDA they are bfloat16, float16 or float8_e4m3fn",
         what);
  }
  return floating_type(what, device_type, dtype);
}

int64_t View::elements() const {
  int64_t count = 1;
  for (int64_t size : size_) count *= size > 0 ? size : 1;
  return count;
}

View Checker::operator()(const char *name, const lolrt_tensor *tensor, DType dtype, std::initializer_list<Dim> dims,
                         Layout layout) const {
  if (tensor == nullptr) {
    fail(LOLRT_INVALID_ARGUMENT, "%s: %s is missing; expected %s %s", operation_, name, info(dtype).name,
         expected_shape(dims).c_str());
  }
  if (tensor->device.type != device_.type || (device_.type != LOLRT_DEVICE_CPU && tensor->device.id != device_.id)) {
    fail(LOLRT_UNSUPPORTED, "%s: %s is on device %d:%d, expected %d:%d (type:id; 1 is the CPU, 2 CUDA): move it there",
         operation_, name, tensor->device.type, tensor->device.id, device_.type, device_.id);
  }
  if (!same(tensor->dtype, dtype) || !shape_fits(*tensor, dims)) {
    const bool readable = tensor->shape != nullptr && tensor->ndim >= 0;
    fail(LOLRT_INVALID_ARGUMENT, "%s: %s: expected %s %s, got %s %s", operation_, name, info(dtype).name,
         expected_shape(dims).c_str(), type_name(tensor->dtype).c_str(),
         readable ? list(tensor->shape, tensor->ndim).c_str() : "without a shape");
  }
  const uintptr_t data = reinterpret_cast<uintptr_t>(tensor->data) + tensor->byte_offset;
  if (tensor->data == nullptr || data % element_bytes(dtype) != 0) {
    fail(LOLRT_INVALID_ARGUMENT, "%s: %s: its data pointer is %s", operation_, name,
         tensor->data == nullptr ? "NULL" : "not aligned to its element type");
  }
  View view;
  view.data_ = reinterpret_cast<void *>(data);
  const int64_t most = INT64_MAX / element_bytes(dtype);
  const auto no_memory_holds = [&] {
    fail(LOLRT_INVALID_ARGUMENT, "%s: %s: no memory holds a tensor of shape %s%s%s", operation_, name,
         list(tensor->shape, tensor->ndim).c_str(), tensor->strides ? " with strides " : "",
         tensor->strides ? list(tensor->strides, tensor->ndim).c_str() : "");
  };
  int64_t packed = 1;
  uint64_t before = 0, after = 0;  // elements between the first one and the lowest, and the highest
  for (int dim = tensor->ndim - 1; dim >= 0; --dim) {
    view.size_[dim] = tensor->shape[dim];
    view.stride_[dim] = tensor->strides ? tensor->strides[dim] : packed;
    const bool must_pack = layout == Layout::contiguous || dim == tensor->ndim - 1;
    if (must_pack && view.size_[dim] > 1 && view.stride_[dim] != packed) {
      fail(LOLRT_INVALID_ARGUMENT, "%s: %s: expected %s, got shape %s with strides %s; copy it first", operation_, name,
           layout == Layout::contiguous ? "a contiguous tensor" : "a contiguous innermost dimension",
           list(tensor->shape, tensor->ndim).c_str(), list(tensor->strides, tensor->ndim).c_str());
    }
    if (view.size_[dim] > most / packed) no_memory_holds();
    packed *= view.size_[dim];
    const bool backwards = view.stride_[dim] < 0;
    const uint64_t step = magnitude(view.stride_[dim]), steps = static_cast<uint64_t>(view.size_[dim] - 1);
    if (steps > 0 && step > (static_cast<uint64_t>(most) - 1 - before - after) / steps) no_memory_holds();
    (backwards ? before : after) += steps * step;
  }
  view.span_ = {data - before * element_bytes(dtype), data + (after + 1) * element_bytes(dtype)};
  return view;
}

View Checker::output(const char *name, const lolrt_tensor *tensor, DType dtype, std::initializer_list<Dim> dims,
                     Layout layout) const {
  const View view = (*this)(name, tensor, dtype, dims, layout);
  if (!elements_apart(view, tensor->ndim)) {
    fail(LOLRT_INVALID_ARGUMENT, "%s: %s is written, but its elements share memory: shape %s with strides %s; copy it first",
         operation_, name, list(tensor->shape, tensor->ndim).c_str(), list(tensor->strides, tensor->ndim).c_str());
  }
  return view;
}

void Checker::not_in(const char *index_name, Span index, const char *written_name, Span written) const {
  if (index.begin < written.end && written.begin < index.end) {
    fail(LOLRT_INVALID_ARGUMENT, "%s: %s lies in the memory of %s, which is written: give it memory of its own", operation_,
         index_name, written_name);
  }
}

void Checker::on_device_of(const char *name, const lolrt_tensor *tensor) {
  if (tensor == nullptr) fail(LOLRT_INVALID_ARGUMENT, "%s: %s is missing", operation_, name);
  const int32_t device_type = tensor->device.type;
  if (device_type != LOLRT_DEVICE_CPU && (devices_ == Devices::cpu || device_type != LOLRT_DEVICE_CUDA)) {
    fail(LOLRT_UNSUPPORTED, "%s: %s is on device type %d; there are kernels for %s: move it there", operation_, name, device_type,
         devices_ == Devices::cpu ? "the CPU (1)" : "the CPU (1) and CUDA (2)");
  }
  device_ = tensor->device;
}

DType Checker::type(const char *name, const lolrt_tensor *tensor) {
  on_device_of(name, tensor);
  char what[128];
  std::snprintf(what, sizeof what, "%s: %s", operation_, name);
  return floating_type(what, device_.type, tensor->dtype);
}

void Checker::descriptor(const void *descriptor, uint32_t given_bytes, uint32_t known_bytes) const {
  if (descriptor == nullptr) fail(LOLRT_INVALID_ARGUMENT, "%s: the descriptor is NULL", operation_);
  if (given_bytes != known_bytes) {
    fail(LOLRT_INVALID_ARGUMENT,
         "%s: descriptor of %u bytes, and that of liblolrt %s (ABI %d) has %u: set struct_size, or build against its lolrt.h",
         operation_, given_bytes, lolrt_version(), lolrt_abi_version(), known_bytes);
  }
}

}  // namespace lolrt
