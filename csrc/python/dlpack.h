// Borrowing tensors from Python. The structures are those of the DLPack specification, 1.3; of the managed tensors only the
// leading fields that are read here.
#pragma once

#include "lolrt/lolrt.h"

#include <pybind11/pybind11.h>

#include <unordered_map>

namespace lolrt {

struct DLPackVersion {
  uint32_t major, minor;
};

struct DLManagedTensorVersioned {
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

// The exchange functions of a type, or NULL; a type is asked once. Types are few and are kept alive. GIL held.
inline const DLPackExchangeAPI *exchange_api(PyTypeObject *type) {
  static auto *known = new std::unordered_map<PyTypeObject *, const DLPackExchangeAPI *>;
  const auto found = known->find(type);
  if (found != known->end()) return found->second;
  const DLPackExchangeAPI *api = nullptr;
  const pybind11::handle handle(reinterpret_cast<PyObject *>(type));
  if (pybind11::hasattr(handle, "__dlpack_c_exchange_api__")) {
    const pybind11::object capsule = handle.attr("__dlpack_c_exchange_api__");
    api = static_cast<const DLPackExchangeAPI *>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (api == nullptr) throw pybind11::error_already_set();
    while (api && (api->version.major != 1 || !api->tensor_from_py_object)) api = api->previous;
  }
  handle.inc_ref();
  return (*known)[type] = api;
}

// The capsule of an object with __dlpack__. What is on CUDA is taken as it is (stream -1), nothing waits for anything: the call
// is given the stream that the object's own work is queued on.
inline pybind11::object exported(pybind11::handle object) {
  const auto device = object.attr("__dlpack_device__")().cast<pybind11::tuple>();  // (type, id)
  if (device[0].cast<int>() != LOLRT_DEVICE_CUDA) return object.attr("__dlpack__")();
  return object.attr("__dlpack__")(pybind11::arg("stream") = -1);
}

// A view of a Python object's tensor for the time of a call; None is no tensor.
class Borrowed {
 public:
  explicit Borrowed(pybind11::handle object) {
    if (object.is_none()) return;
    if (const DLPackExchangeAPI *api = exchange_api(Py_TYPE(object.ptr()))) {
      if (api->tensor_from_py_object(object.ptr(), &tensor_) != 0) throw pybind11::error_already_set();
      view_ = &tensor_;
      return;
    }
    if (PyCapsule_CheckExact(object.ptr())) {
      capsule_ = pybind11::reinterpret_borrow<pybind11::object>(object);
    } else if (pybind11::hasattr(object, "__dlpack__")) {
      capsule_ = exported(object);  // frees itself: nobody takes the tensor out of it
    } else {
      throw pybind11::type_error("expected a tensor (an object with __dlpack__), got " +
                                 std::string(Py_TYPE(object.ptr())->tp_name));
    }
    if (void *managed =
            PyCapsule_IsValid(capsule_.ptr(), "dltensor") ? PyCapsule_GetPointer(capsule_.ptr(), "dltensor") : nullptr) {
      view_ = static_cast<lolrt_tensor *>(managed);  // an unversioned managed tensor begins with the tensor
    } else {
      managed = PyCapsule_GetPointer(capsule_.ptr(), "dltensor_versioned");
      if (managed == nullptr) throw pybind11::error_already_set();
      view_ = &static_cast<DLManagedTensorVersioned *>(managed)->tensor;
    }
  }
  Borrowed(const Borrowed &) = delete;
  Borrowed &operator=(const Borrowed &) = delete;

  const lolrt_tensor *get() const { return view_; }

 private:
  lolrt_tensor tensor_{};
  const lolrt_tensor *view_ = nullptr;
  pybind11::object capsule_;
};

}  // namespace lolrt
