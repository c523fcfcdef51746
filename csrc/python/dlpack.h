// Borrowing tensors from Python. The structures are those of the DLPack specification, 1.3; of the managed tensors only the
// leading fields that are read here.
#pragma once

#include "lolrt/lolrt.h"

#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>
#include <unordered_map>

namespace lolrt {

// Of another major version only the version itself can be read.
struct DLPackVersion {
  static constexpr uint32_t known_major = 1;

  uint32_t major, minor;
};

struct DLManagedTensorVersioned {
  static constexpr uint64_t read_only = 1, is_copied = 2;

  DLPackVersion version;
  void *manager_ctx;
  void (*deleter)(DLManagedTensorVersioned *);
  uint64_t flags;
  lolrt_tensor tensor;
};

// Type attribute `__dlpack_c_exchange_api__`, a capsule "dlpack_exchange_api".
struct DLPackExchangeAPI {
  DLPackVersion version;
  DLPackExchangeAPI *previous;
  void *managed_tensor_allocator;
  void *managed_tensor_from_py_object;
  void *managed_tensor_to_py_object;
  int (*tensor_from_py_object)(void *object, lolrt_tensor *out);  // borrows; may be NULL
  void *current_work_stream;
};

// What is known of a type of tensors.
struct TensorType {
  const DLPackExchangeAPI *api = nullptr;  // NULL: its objects are asked for a capsule
  bool may_be_negated = false;             // torch's, whose memory may hold the negative of what a tensor is
};

// A type is asked once. Types are few and are kept alive. GIL held.
inline const TensorType &tensor_type(PyTypeObject *type) {
  static auto *known = new std::unordered_map<PyTypeObject *, TensorType>;
  const auto found = known->find(type);
  if (found != known->end()) return found->second;
  TensorType answer;
  const pybind11::handle handle(reinterpret_cast<PyObject *>(type));
  if (pybind11::hasattr(handle, "__dlpack_c_exchange_api__")) {
    const pybind11::object capsule = handle.attr("__dlpack_c_exchange_api__");
    answer.api = static_cast<const DLPackExchangeAPI *>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (answer.api == nullptr) throw pybind11::error_already_set();
    while (answer.api && (answer.api->version.major != DLPackVersion::known_major || !answer.api->tensor_from_py_object)) {
      answer.api = answer.api->previous;
    }
  }
  answer.may_be_negated = pybind11::hasattr(handle, "is_neg");
  handle.inc_ref();
  return (*known)[type] = answer;
}

// The capsule of an object with __dlpack__, of the newest version that it has and that is known here. What is on CUDA is taken as
// it is (stream -1), nothing waits for anything: the call is given the stream that the object's own work is queued on.
inline pybind11::object exported(pybind11::handle object) {
  const auto device = object.attr("__dlpack_device__")().cast<pybind11::tuple>();  // (type, id)
  pybind11::dict options;
  if (device[0].cast<int>() == LOLRT_DEVICE_CUDA) options["stream"] = -1;
  options["max_version"] = pybind11::make_tuple(DLPackVersion::known_major, 0);
  try {
    return object.attr("__dlpack__")(**options);
  } catch (pybind11::error_already_set &error) {
    if (!error.matches(PyExc_TypeError)) throw;
  }
  PyDict_DelItemString(options.ptr(), "max_version");  // which came with version 1
  return object.attr("__dlpack__")(**options);
}

enum class Use { read, write };

// A view of a Python object's tensor for the time of a call; None is no tensor.
class Borrowed {
 public:
  Borrowed(const char *name, pybind11::handle object, Use use = Use::read) : name_(name) {
    if (object.is_none()) return;
    const TensorType &type = tensor_type(Py_TYPE(object.ptr()));
    if (type.may_be_negated && is_negated(object)) {
      refuse("its memory holds the negative of its numbers (torch's negative bit); pass resolve_neg() of it");
    }
    if (type.api) {
      if (type.api->tensor_from_py_object(object.ptr(), &tensor_) != 0) throw pybind11::error_already_set();
      view_ = &tensor_;
      return;
    }
    if (PyCapsule_CheckExact(object.ptr())) {
      capsule_ = pybind11::reinterpret_borrow<pybind11::object>(object);
    } else if (pybind11::hasattr(object, "__dlpack__")) {
      capsule_ = exported(object);  // frees itself: nobody takes the tensor out of it
    } else {
      throw pybind11::type_error(std::string(name_) + ": expected a tensor (an object with __dlpack__), got " +
                                 Py_TYPE(object.ptr())->tp_name);
    }
    look_into_capsule(use);
  }
  Borrowed(const Borrowed &) = delete;
  Borrowed &operator=(const Borrowed &) = delete;

  const lolrt_tensor *get() const { return view_; }
  [[noreturn]] void refuse(const std::string &problem) const { throw pybind11::value_error(std::string(name_) + ": " + problem); }

 private:
  static bool is_negated(pybind11::handle object) {
    static PyObject *method = PyUnicode_InternFromString("is_neg");
    const auto answer = pybind11::reinterpret_steal<pybind11::object>(PyObject_CallMethodNoArgs(object.ptr(), method));
    if (!answer) throw pybind11::error_already_set();
    return answer.ptr() == Py_True;
  }

  void look_into_capsule(Use use) {
    if (PyCapsule_IsValid(capsule_.ptr(), "dltensor")) {
      // An unversioned managed tensor begins with the tensor.
      view_ = static_cast<lolrt_tensor *>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"));
      return;
    }
    if (!PyCapsule_IsValid(capsule_.ptr(), "dltensor_versioned")) {
      refuse("expected a DLPack capsule with a tensor that nobody has taken out of it");
    }
    const auto *managed = static_cast<DLManagedTensorVersioned *>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor_versioned"));
    if (managed->version.major != DLPackVersion::known_major) {
      refuse("DLPack of version " + std::to_string(managed->version.major) + "; expected version 1, or one before it");
    }
    if (use == Use::write && managed->flags & DLManagedTensorVersioned::read_only) {
      refuse("it is written, but its memory is read-only; pass a copy of it");
    }
    if (use == Use::write && managed->flags & DLManagedTensorVersioned::is_copied) {
      refuse("it is written, but what came over DLPack is a copy, which nobody would read");
    }
    view_ = &managed->tensor;
  }

  const char *name_;
  lolrt_tensor tensor_{};
  const lolrt_tensor *view_ = nullptr;
  pybind11::object capsule_;
};

// The contiguous elements of a tensor of one dimension on the CPU or CUDA, aligned; false for any other.
template <class T>
bool vector_of(const Borrowed &tensor, uint8_t code, T **data, int64_t *count) {
  const lolrt_tensor *view = tensor.get();
  if (view == nullptr || view->ndim != 1 || view->shape == nullptr || view->shape[0] < 0 || view->dtype.code != code ||
      view->dtype.bits != 8 * sizeof(T) || view->dtype.lanes != 1 ||
      (view->strides && view->shape[0] > 1 && view->strides[0] != 1)) {
    return false;
  }
  const uintptr_t begin = reinterpret_cast<uintptr_t>(view->data) + view->byte_offset;
  *data = reinterpret_cast<T *>(begin);
  *count = view->shape[0];
  return begin % sizeof(T) == 0;
}

// Fails for what torch.from_dlpack takes and should not: strides that it ends the process for, and an offset that it overlooks.
inline void check_for_torch(const Borrowed &array) {
  const lolrt_tensor *view = array.get();
  if (view == nullptr || view->ndim < 0 || view->ndim > 64 || (view->ndim > 0 && view->shape == nullptr)) {
    array.refuse("expected an array of 0 to 64 dimensions");
  }
  if (view->byte_offset != 0)
    array.refuse("its data begins within its buffer (byte_offset), where torch does not look; copy it first");
  constexpr int64_t most = INT64_MAX / 64;  // of 16 bytes at most, and room for a sum of two
  int64_t elements = 1, reach = 0;
  for (int dim = view->ndim - 1; dim >= 0; --dim) {
    const int64_t size = view->shape[dim], stride = view->strides ? view->strides[dim] : elements;
    if (stride < 0) {
      array.refuse(
          "its elements go backwards in memory (a negative stride), which torch does not take; copy it first, as "
          "numpy.ascontiguousarray does");
    }
    if (size < 0 || (size > 1 && (size > most / std::max<int64_t>(elements, 1) || stride > (most - reach) / (size - 1)))) {
      array.refuse("no memory holds an array of such sizes and strides");
    }
    if (size > 1) reach += (size - 1) * stride;
    elements *= size;
  }
}

}  // namespace lolrt
