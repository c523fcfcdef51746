// Fuzzes lolrt._core: whatever Python passes to it, a call computes, or raises one of the exceptions that _core.pyi names, and
// touches nothing else. An interpreter runs in the fuzzer; arguments are the tensors of tensors.h as capsules, of any version, or
// as objects that have one to give, and now and then something else altogether.
//
//     g++ -std=c++17 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -DSTANDALONE -Icsrc/include -Icsrc
//       -DLOLRT_VERSION='"0"' -DLOLRT_SHARED_HEADERS='"0"' $(python -m pybind11 --includes) fuzz/binding.cpp
//       csrc/python/module.cpp csrc/core/*.cpp csrc/cpu/scalar.cpp $(python3-config --embed --ldflags) -o build/fuzz_binding
//     ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc build/fuzz_binding CALLS SEED
//
// With clang++ -fsanitize=fuzzer,address,undefined and without -DSTANDALONE, libFuzzer draws the bytes.
#include "tensors.h"

#include <pybind11/embed.h>

namespace py = pybind11;
using namespace fuzz;

extern "C" PyObject *PyInit__core();

long calls = 0;

namespace {

struct Versioned {
  uint32_t major, minor;
  void *context, *deleter;
  uint64_t flags;
  lolrt_tensor tensor;
};

class Arguments {
 public:
  Arguments(Bytes &bytes, Tensors &tensors) : bytes_(bytes), tensors_(tensors) {}

  py::object tensor(lolrt_dtype dtype, std::initializer_list<int64_t> right) {
    const lolrt_tensor *view = tensors_(dtype, right);
    if (view == nullptr) return anything();
    Versioned &made = made_.emplace_back(Versioned{1, 0, nullptr, nullptr, 0, *view});
    if (bytes_.rarely()) made.major = bytes_.next() % 4;
    if (bytes_.rarely()) made.flags = bytes_.next() % 8;
    const bool versioned = bytes_.next() % 2;
    const char *name = bytes_.rarely() ? "used_dltensor" : versioned ? "dltensor_versioned" : "dltensor";
    void *begins = versioned ? static_cast<void *>(&made) : &made.tensor;
    py::object capsule = py::reinterpret_steal<py::object>(PyCapsule_New(begins, name, nullptr));
    if (bytes_.next() % 2) return capsule;
    py::object exporter = py::module_::import("types").attr("SimpleNamespace")();
    const py::tuple device = py::make_tuple(view->device.type, view->device.id);
    // Special methods of the binding are looked up as attributes.
    exporter.attr("__dlpack_device__") = py::cpp_function([device] { return device; });
    exporter.attr("__dlpack__") = py::cpp_function([capsule](const py::kwargs &) { return capsule; });
    return exporter;
  }

  py::object whole(int64_t right) { return bytes_.rarely() ? anything() : py::int_(bytes_.or_number(right)); }
  py::object real(double right) { return bytes_.rarely() ? anything() : py::float_(right); }

  py::object anything() {
    switch (bytes_.next() % 9) {
      case 0:
        return py::int_(bytes_.number());
      case 1:
        return py::str("tensor");
      case 2:
        return py::list();
      case 3:
        return py::float_(1e308 * 10);
      case 4:
        return py::reinterpret_steal<py::object>(PyLong_FromString("100000000000000000000000", nullptr, 10));
      case 5:
        return py::bool_(true);
      case 6:
        return py::type::of(py::none());
      case 7:  // an exporter that returns something else
        return py::eval("type('E', (), {'__dlpack_device__': lambda self: (1, 0), '__dlpack__': lambda self, **_: 3})()");
      default:
        return py::none();
    }
  }

 private:
  Bytes &bytes_;
  Tensors &tensors_;
  std::list<Versioned> made_;
};

py::list arguments_of(int op, Bytes &bytes, Arguments &argument, lolrt_dtype dtype) {
  const int64_t frames = 1 + bytes.below(3), tokens = 1 + bytes.below(9), heads = 1 + bytes.below(2),
                dim = 2 * (1 + bytes.below(9));
  const auto rows = {frames, tokens, heads, dim};
  const auto flat = {frames, tokens, dim};
  int64_t elements = 1;
  lolrt_page_elements(LOLRT_DEVICE_CPU, dtype, tokens, heads, dim, &elements);
  const auto tensor = [&](lolrt_dtype of, std::initializer_list<int64_t> shape) { return argument.tensor(of, shape); };
  const auto attention = [&] {
    py::list all;
    all.append(tensor(dtype, rows));
    all.append(tensor(dtype, {3, elements}));
    all.append(tensor(kInt32, {frames}));
    all.append(argument.whole(tokens));
    all.append(bytes.next() % 2 ? tensor(kFloat32, {frames, frames, heads, 1, 2}) : py::none());
    all.append(bytes.next() % 2 ? tensor(kFloat32, {frames, heads}) : py::none());
    return all;
  };
  py::list all;
  const auto add = [&](py::object one) { all.append(one); };
  switch (op) {
    case 0:
      for (int i = 0; i < 3; ++i) add(tensor(dtype, rows));
      for (int i = 0; i < 2; ++i) add(tensor(dtype, {heads, dim}));
      add(argument.real(1e-6));
      add(tensor(kFloat32, {tokens, 1, 2}));
      add(argument.whole(0));
      add(tensor(dtype, rows));
      add(tensor(dtype, {frames + 1, elements}));
      add(tensor(kInt32, {frames}));
      break;
    case 1:
      all = attention();
      add(tensor(dtype, rows));
      add(bytes.next() % 2 ? tensor(kFloat32, {frames, frames, heads}) : py::none());
      break;
    case 2:
      all = attention();
      add(argument.real(0));
      add(tensor(dtype, rows));
      add(bytes.next() % 2 ? tensor(kFloat32, {frames, frames, heads}) : py::none());
      add(tensor({LOLRT_CODE_UINT, 8, 1}, {1 << 14}));
      break;
    case 3:
      for (int i = 0; i < 2; ++i) add(tensor(dtype, flat));
      for (int i = 0; i < 3; ++i) add(tensor(kFloat32, {bytes.next() % 2 ? 1 : frames, dim}));
      add(argument.real(1e-6));
      add(tensor(dtype, flat));
      break;
    case 4:
      add(tensor(dtype, flat));
      break;
    case 5:
      add(tensor(kFloat32, {dim}));
      add(argument.real(0.5));
      add(tensor(kFloat32, {dim}));
      add(argument.real(0.25));
      add(tensor(kFloat32, {dim}));
      add(tensor(kFloat32, {dim}));
      break;
    case 6:
      add(tensor(dtype, rows));
      add(tensor(kFloat32, {dim}));
      add(argument.whole(1));
      add(tensor(kFloat32, rows));
      break;
    case 7:
      add(py::none());
      add(tensor(kFloat32, {frames, tokens + 1, heads + 1, dim}));
      add(tensor(kFloat32, {1, 1, 2, 2, dim, 16}));
      add(tensor(kFloat32, {1, 16}));
      add(tensor(kFloat32, {frames, tokens, heads, 16}));
      add(tensor(kFloat32, {frames, tokens, heads, 16}));
      break;
    case 8:
      add(tensor({LOLRT_CODE_FLOAT, 64, 1}, {dim}));
      add(tensor(kUint64, {dim}));
      break;
    case 9:
      add(tensor(kUint64, {heads, dim}));
      add(tensor(kInt64, {tokens, frames}));
      add(tensor(kFloat32, {tokens, frames, heads, dim, 2}));
      break;
    case 10:
      for (int i = 0; i < 3; ++i) add(argument.whole(bytes.next()));
      add(tensor(kFloat32, {frames, dim}));
      break;
    case 11:
      add(py::str("x"));
      add(tensor(dtype, rows));
      add(py::bool_(bytes.next() % 2));
      break;
    default:
      add(bytes.rarely() ? argument.anything() : py::str(bytes.next() % 2 ? "float32" : "bfloat16"));
      for (int i = 0; i < 3; ++i) add(argument.whole(bytes.next()));
  }
  if (bytes.rarely()) add(argument.anything());
  return all;
}

// Pools and windows, which hold state of their own.
void use_window(py::module_ &core, Bytes &bytes, Arguments &argument) {
  py::object pool = core.attr("Pool")(argument.whole(bytes.below(40)));
  py::object window = core.attr("Window")(bytes.rarely() ? argument.anything() : pool, argument.whole(bytes.below(4)),
                                          argument.whole(bytes.below(9)));
  for (int call = 0; call < 6; ++call) {
    ++calls;
    try {
      switch (bytes.next() % 5) {
        case 0:
          pool.attr(bytes.next() % 2 ? "retain" : "release")(argument.whole(bytes.next()));
          break;
        case 1:
          pool.attr("acquire")();
          break;
        case 2: {
          py::list frames;
          for (int i = 0; i < bytes.next() % 9; ++i) frames.append(argument.whole(i));
          window.attr("restore")(frames);
          break;
        }
        default:
          window.attr("advance")(argument.whole(bytes.next()), argument.whole(1 + bytes.below(4)));
      }
      window.attr("read")();
    } catch (py::error_already_set &error) {
      if (!error.matches(PyExc_ValueError) && !error.matches(PyExc_TypeError) && !error.matches(PyExc_MemoryError)) throw;
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const char *const names[] = {
      "kv_write", "frame_attention_workspace", "frame_attention", "modulated_norm", "gelu",        "sampler_step", "channel_norm",
      "conv3d",   "phase_increments",          "rotation_table",  "normal",         "check_array", "page_elements"};
  static py::module_ *core = nullptr;
  if (core == nullptr) {
    PyImport_AppendInittab("_core", PyInit__core);
    py::initialize_interpreter();
    core = new py::module_(py::module_::import("_core"));
    core->attr("set_threads")(1);
  }
  Bytes bytes(data, size);
  Tensors tensors(bytes);
  Arguments argument(bytes, tensors);
  const uint8_t choice = bytes.next();
  const int op = choice % (std::size(names) + 1);
  ++calls;
  try {
    if (op == std::size(names)) {
      use_window(*core, bytes, argument);
    } else {
      core->attr(names[op])(*arguments_of(op, bytes, argument, choice & 128 ? kBfloat16 : kFloat32));
      if (op > 1 && op < 11 && op != 7) tensors.check_taken();
    }
  } catch (py::error_already_set &error) {
    const bool named = error.matches(PyExc_ValueError) || error.matches(PyExc_TypeError) || error.matches(PyExc_MemoryError) ||
                       error.matches(core->attr("UnsupportedError"));
    if (!named || py::str(error.value()).cast<std::string>().empty()) {
      std::fprintf(stderr, "%s: %s\n", op < int(std::size(names)) ? names[op] : "Window", error.what());
      std::abort();
    }
  }
  return 0;
}
