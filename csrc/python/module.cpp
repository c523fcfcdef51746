// lolrt._core: DLPack tensors in, one C ABI call with the GIL released, nothing else. Documented in lolrt/_core.pyi.
#include "dlpack.h"
#include "mapping.h"
#include "bridges/torch_threads.h"

#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;
using lolrt::Borrowed;
using lolrt::Use;

namespace {

struct Unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void check(lolrt_status status) {
  switch (status) {
    case LOLRT_OK:
      return;
    case LOLRT_INVALID_ARGUMENT:
      throw py::value_error(lolrt_last_error());
    case LOLRT_UNSUPPORTED:
      throw Unsupported(lolrt_last_error());
    case LOLRT_OUT_OF_MEMORY:
      PyErr_SetString(PyExc_MemoryError, lolrt_last_error());
      throw py::error_already_set();
    default:
      throw std::runtime_error(lolrt_last_error());
  }
}

template <class... Args>
void call(lolrt_status (*function)(Args...), Args... args) {
  lolrt_status status;
  {
    py::gil_scoped_release release;
    status = function(args...);
  }
  check(status);
}

void *stream_of(uintptr_t handle) { return reinterpret_cast<void *>(handle); }

void kv_write(py::handle q, py::handle k, py::handle v, py::handle q_weight, py::handle k_weight, float eps, py::handle rotation,
              int64_t rotation_first_channel, py::handle q_out, py::handle pages, py::handle page_table, uintptr_t stream) {
  const Borrowed q_("q", q), k_("k", k), v_("v", v), q_weight_("q_weight", q_weight), k_weight_("k_weight", k_weight),
      rotation_("rotation", rotation), q_out_("q_out", q_out, Use::write), pages_("pages", pages, Use::write),
      page_table_("page_table", page_table);
  const lolrt_kv_write_desc desc{sizeof desc,
                                 eps,
                                 q_.get(),
                                 k_.get(),
                                 v_.get(),
                                 q_weight_.get(),
                                 k_weight_.get(),
                                 rotation_.get(),
                                 rotation_first_channel,
                                 q_out_.get(),
                                 pages_.get(),
                                 page_table_.get(),
                                 stream_of(stream)};
  call<const lolrt_kv_write_desc *>(lolrt_kv_write, &desc);
}

// The tensors of a frame_attention call and its descriptor, still without a workspace.
struct AttentionCall {
  Borrowed q, pages, page_table, rotation, bias, out, mass;
  lolrt_frame_attention_desc desc;

  AttentionCall(py::handle q_, py::handle pages_, py::handle page_table_, int64_t page_tokens, py::handle rotation_,
                py::handle bias_, float scale, py::handle out_, py::handle mass_)
      : q("q", q_),
        pages("pages", pages_),
        page_table("page_table", page_table_),
        rotation("rotation", rotation_),
        bias("bias", bias_),
        out("out", out_, Use::write),
        mass("mass", mass_, Use::write),
        desc{sizeof desc, scale,      q.get(), pages.get(), page_table.get(), page_tokens, rotation.get(), bias.get(),
             out.get(),   mass.get(), nullptr, 0,           nullptr} {}
};

constexpr uint64_t kAlignment = 64;

uint64_t frame_attention_workspace(py::handle q, py::handle pages, py::handle page_table, int64_t page_tokens,
                                   py::handle rotation, py::handle bias, py::handle out, py::handle mass) {
  const AttentionCall attention(q, pages, page_table, page_tokens, rotation, bias, 0.0f, out, mass);
  uint64_t bytes = 0;
  check(lolrt_frame_attention_workspace(&attention.desc, &bytes));
  return bytes + kAlignment - 1;  // room to align whatever tensor comes
}

void frame_attention(py::handle q, py::handle pages, py::handle page_table, int64_t page_tokens, py::handle rotation,
                     py::handle bias, float scale, py::handle out, py::handle mass, py::handle workspace, uintptr_t stream) {
  AttentionCall attention(q, pages, page_table, page_tokens, rotation, bias, scale, out, mass);
  const Borrowed buffer("workspace", workspace, Use::write);
  if (const lolrt_tensor *view = buffer.get()) {
    uint8_t *bytes = nullptr;
    int64_t count = 0;
    if (!lolrt::vector_of(buffer, LOLRT_CODE_UINT, &bytes, &count) ||
        (attention.q.get() && view->device.type != attention.q.get()->device.type)) {
      throw py::value_error("frame_attention: workspace: expected a contiguous uint8 tensor of one dimension, where q is");
    }
    const uint64_t padding = -reinterpret_cast<uintptr_t>(bytes) % kAlignment;
    attention.desc.workspace = reinterpret_cast<void *>(reinterpret_cast<uintptr_t>(bytes) + padding);
    attention.desc.workspace_bytes = static_cast<uint64_t>(count) > padding ? static_cast<uint64_t>(count) - padding : 0;
  }
  attention.desc.stream = stream_of(stream);
  call<const lolrt_frame_attention_desc *>(lolrt_frame_attention, &attention.desc);
}

void modulated_norm(py::handle x, py::handle residual, py::handle gate, py::handle scale, py::handle shift, float eps,
                    py::handle out, uintptr_t stream) {
  const Borrowed x_("x", x, residual.is_none() ? Use::read : Use::write), residual_("residual", residual), gate_("gate", gate),
      scale_("scale", scale), shift_("shift", shift), out_("out", out, Use::write);
  const lolrt_modulated_norm_desc desc{sizeof desc,  eps,          x_.get(),   residual_.get(),  gate_.get(),
                                       scale_.get(), shift_.get(), out_.get(), stream_of(stream)};
  call<const lolrt_modulated_norm_desc *>(lolrt_modulated_norm, &desc);
}

void gelu(py::handle x, uintptr_t stream) {
  const Borrowed x_("x", x, Use::write);
  const lolrt_gelu_desc desc{sizeof desc, x_.get(), stream_of(stream)};
  call<const lolrt_gelu_desc *>(lolrt_gelu, &desc);
}

void quantize_rows(py::handle x, py::handle q, py::handle scale) {
  const Borrowed x_("x", x), q_("q", q, Use::write), scale_("scale", scale, Use::write);
  const lolrt_quantize_rows_desc desc{sizeof desc, x_.get(), q_.get(), scale_.get()};
  call<const lolrt_quantize_rows_desc *>(lolrt_quantize_rows, &desc);
}

void dequantize_rows(py::handle x, py::handle scale, py::handle bias, py::handle out) {
  const Borrowed x_("x", x), scale_("scale", scale), bias_("bias", bias), out_("out", out, Use::write);
  const lolrt_dequantize_rows_desc desc{sizeof desc, x_.get(), scale_.get(), bias_.get(), out_.get()};
  call<const lolrt_dequantize_rows_desc *>(lolrt_dequantize_rows, &desc);
}

void sampler_step(py::handle sample, double level, py::handle velocity, double after, py::handle noise, py::handle out,
                  uintptr_t stream) {
  const Borrowed sample_("sample", sample), velocity_("velocity", velocity), noise_("noise", noise), out_("out", out, Use::write);
  const lolrt_sampler_step_desc desc{sizeof desc,     level,        after,      sample_.get(),
                                     velocity_.get(), noise_.get(), out_.get(), stream_of(stream)};
  call<const lolrt_sampler_step_desc *>(lolrt_sampler_step, &desc);
}

void channel_norm(py::handle x, py::handle gamma, bool silu, py::handle out) {
  const Borrowed x_("x", x), gamma_("gamma", gamma), out_("out", out, Use::write);
  const lolrt_channel_norm_desc desc{sizeof desc, silu, x_.get(), gamma_.get(), out_.get()};
  call<const lolrt_channel_norm_desc *>(lolrt_channel_norm, &desc);
}

void conv3d(py::handle past, py::handle x, py::handle weight, py::handle bias, py::handle residual, py::handle out) {
  const Borrowed past_("past", past), x_("x", x), weight_("weight", weight), bias_("bias", bias), residual_("residual", residual),
      out_("out", out, Use::write);
  const lolrt_conv3d_desc desc{sizeof desc, past_.get(), x_.get(), weight_.get(), bias_.get(), residual_.get(), out_.get()};
  call<const lolrt_conv3d_desc *>(lolrt_conv3d, &desc);
}

// The contiguous elements of a tensor of doubles or 64-bit integers.
template <class T>
std::pair<T *, int64_t> words_of(const Borrowed &tensor, const char *name, uint8_t code) {
  std::pair<T *, int64_t> words;
  if (!lolrt::vector_of(tensor, code, &words.first, &words.second) || tensor.get()->device.type != LOLRT_DEVICE_CPU) {
    throw py::value_error(std::string("phase_increments: ") + name + ": expected a contiguous " +
                          (code == LOLRT_CODE_FLOAT ? "float64" : "uint64") + " tensor of one dimension, aligned, on the CPU");
  }
  return words;
}

void phase_increments(py::handle radians, py::handle out) {
  const Borrowed radians_("radians", radians), out_("out", out, Use::write);
  const auto from = words_of<double>(radians_, "radians", LOLRT_CODE_FLOAT);
  const auto to = words_of<uint64_t>(out_, "out", LOLRT_CODE_UINT);
  if (from.second != to.second) {
    throw py::value_error("phase_increments: " + std::to_string(from.second) + " radians, but out has " +
                          std::to_string(to.second) + " elements");
  }
  call<const double *, uint64_t *, int64_t>(lolrt_phase_increments, from.first, to.first, to.second);
}

void rotation_table(py::handle turns, py::handle offsets, py::handle out) {
  const Borrowed turns_("turns", turns), offsets_("offsets", offsets), out_("out", out, Use::write);
  call<const lolrt_tensor *, const lolrt_tensor *, const lolrt_tensor *>(lolrt_rotation_table, turns_.get(), offsets_.get(),
                                                                         out_.get());
}

void normal(uint64_t seed, int64_t frame, int32_t step, py::handle out) {
  const Borrowed out_("out", out, Use::write);
  call<uint64_t, int64_t, int32_t, const lolrt_tensor *>(lolrt_normal, seed, frame, step, out_.get());
}

int64_t page_elements(const std::string &dtype, int64_t tokens, int64_t heads, int64_t dim, const std::string &device) {
  const std::pair<const char *, lolrt_dtype> types[] = {{"float32", {LOLRT_CODE_FLOAT, 32, 1}},
                                                        {"bfloat16", {LOLRT_CODE_BFLOAT, 16, 1}},
                                                        {"float16", {LOLRT_CODE_FLOAT, 16, 1}},
                                                        {"float8_e4m3fn", {LOLRT_CODE_FLOAT8_E4M3FN, 8, 1}},
                                                        {"int8", {LOLRT_CODE_INT, 8, 1}}};
  const bool cuda = device == "cuda";
  if (!cuda && device != "cpu")
    throw py::value_error("page_elements: device: expected \"cpu\" or \"cuda\", got \"" + device + "\"");
  for (const auto &[name, type] : types) {
    if (name != dtype) continue;
    int64_t elements = 0;
    check(lolrt_page_elements(cuda ? LOLRT_DEVICE_CUDA : LOLRT_DEVICE_CPU, type, tokens, heads, dim, &elements));
    return elements;
  }
  throw py::value_error(
      "page_elements: dtype: expected \"float32\", \"bfloat16\", \"float16\", \"float8_e4m3fn\" or \"int8\", got \"" + dtype +
      "\"");
}

void check_array(const char *name, py::handle array, bool written) {
  check_for_torch(Borrowed(name, array, written ? Use::write : Use::read));
}

// Of an object that __init__ has never run for pybind11 takes the memory as it comes: of zeros, its handle is the NULL that every
// call refuses.
struct Zeroed {
  static void *operator new(size_t bytes) {
    void *memory = ::operator new(bytes);
    return std::memset(memory, 0, bytes);
  }
  static void operator delete(void *memory) { ::operator delete(memory); }
};

struct Pool : Zeroed {
  lolrt_pool *handle = nullptr;

  explicit Pool(int64_t pages) { check(lolrt_pool_create(pages, &handle)); }
  ~Pool() { lolrt_pool_destroy(handle); }
  Pool(const Pool &) = delete;
  Pool &operator=(const Pool &) = delete;

  int32_t acquire() {
    int32_t page = 0;
    check(lolrt_pool_acquire(handle, &page));
    return page;
  }
};

struct Window : Zeroed {
  std::shared_ptr<Pool> pool;  // outlives the window
  lolrt_window *handle = nullptr;

  Window(std::shared_ptr<Pool> from, int64_t sink_frames, int64_t recent_frames) : pool(std::move(from)) {
    check(lolrt_window_create(pool->handle, sink_frames, recent_frames, &handle));
  }
  ~Window() { lolrt_window_destroy(handle); }
  Window(const Window &) = delete;
  Window &operator=(const Window &) = delete;

  std::pair<std::vector<int32_t>, std::vector<int64_t>> read() const {
    const auto size = static_cast<size_t>(lolrt_window_size(handle));
    std::vector<int32_t> pages(size);
    std::vector<int64_t> frames(size);
    check(lolrt_window_read(handle, pages.data(), frames.data(), lolrt_window_size(handle)));
    return {pages, frames};
  }
};

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const auto &name : py::str(lolrt_isas()).attr("split")(",")) names.push_back(name.cast<std::string>());
  return names;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  lolrt::use_torch_threads();
  py::register_exception<Unsupported>(m, "UnsupportedError", PyExc_RuntimeError);
  using py::arg;
  m.def("kv_write", &kv_write, arg("q"), arg("k"), arg("v"), arg("q_weight"), arg("k_weight"), arg("eps"), arg("rotation"),
        arg("rotation_first_channel"), arg("q_out"), arg("pages"), arg("page_table"), arg("stream") = 0);
  m.def("frame_attention_workspace", &frame_attention_workspace, arg("q"), arg("pages"), arg("page_table"), arg("page_tokens"),
        arg("rotation"), arg("bias"), arg("out"), arg("mass"));
  m.def("frame_attention", &frame_attention, arg("q"), arg("pages"), arg("page_table"), arg("page_tokens"), arg("rotation"),
        arg("bias"), arg("scale"), arg("out"), arg("mass"), arg("workspace"), arg("stream") = 0);
  m.def("modulated_norm", &modulated_norm, arg("x"), arg("residual"), arg("gate"), arg("scale"), arg("shift"), arg("eps"),
        arg("out"), arg("stream") = 0);
  m.def("gelu", &gelu, arg("x"), arg("stream") = 0);
  m.def("quantize_rows", &quantize_rows, arg("x"), arg("q"), arg("scale"));
  m.def("dequantize_rows", &dequantize_rows, arg("x"), arg("scale"), arg("bias"), arg("out"));
  m.def("sampler_step", &sampler_step, arg("sample"), arg("level"), arg("velocity"), arg("after"), arg("noise"), arg("out"),
        arg("stream") = 0);
  m.def("channel_norm", &channel_norm, arg("x"), arg("gamma"), arg("silu"), arg("out"));
  m.def("conv3d", &conv3d, arg("past"), arg("x"), arg("weight"), arg("bias"), arg("residual"), arg("out"));
  m.def("phase_increments", &phase_increments, arg("radians"), arg("out"));
  m.def("rotation_table", &rotation_table, arg("turns"), arg("offsets"), arg("out"));
  m.def("normal", &normal, arg("seed"), arg("frame"), arg("step"), arg("out"));
  m.def("check_array", &check_array, arg("name"), arg("array"), arg("written"));
  m.def("page_elements", &page_elements, arg("dtype"), arg("tokens"), arg("heads"), arg("dim"), arg("device") = "cpu");
  py::class_<Pool, std::shared_ptr<Pool>>(m, "Pool")
      .def(py::init<int64_t>(), arg("pages"))
      .def("acquire", [](Pool &pool) { return pool.acquire(); })  // by reference, which None is not
      .def(
          "retain", [](Pool &pool, int32_t page) { check(lolrt_pool_retain(pool.handle, page)); }, arg("page"))
      .def(
          "release", [](Pool &pool, int32_t page) { check(lolrt_pool_release(pool.handle, page)); }, arg("page"))
      .def_property_readonly("free_pages", [](const Pool &pool) { return lolrt_pool_free_pages(pool.handle); });
  py::class_<Window>(m, "Window")
      .def(py::init<std::shared_ptr<Pool>, int64_t, int64_t>(), arg("pool").none(false), arg("sink_frames"), arg("recent_frames"))
      .def(
          "advance",
          [](Window &window, int64_t first_frame, int64_t frames) {
            check(lolrt_window_advance(window.handle, first_frame, frames));
          },
          arg("first_frame"), arg("frames"))
      .def("read", [](const Window &window) { return window.read(); })
      .def(
          "restore",
          [](Window &window, const std::vector<int64_t> &frames) {
            check(lolrt_window_restore(window.handle, frames.data(), static_cast<int64_t>(frames.size())));
          },
          arg("frames"))
      .def("__len__", [](const Window &window) { return lolrt_window_size(window.handle); });
  m.def("guard_mapping", &lolrt::GuardedMappings::add, arg("address"), arg("bytes"));
  m.def("unguard_mapping", &lolrt::GuardedMappings::remove, arg("number"));
  m.def("take_lost_pages", &lolrt::GuardedMappings::take_lost);
  m.def("isas", &isas);
  m.def("isa", [] { return std::string(lolrt_isa()); });
  m.def("set_isa", [](const std::string &name) { check(lolrt_set_isa(name.c_str())); }, arg("name"));
  m.def("threads", &lolrt_threads);
  m.def("set_threads", [](int32_t threads) { check(lolrt_set_threads(threads)); }, arg("threads"));
  m.def("version", [] { return std::string(lolrt_version()); });
  m.def("abi_version", &lolrt_abi_version);
}
