// The ops on the CPU as torch's, registered from C++ by its stable ABI: liblolrt_torch.so, for processes without Python, and for
// what is compiled by AOTInductor there. In Python lolrt/ops/library.py registers the same.
//
// A failure is an exception with the text of lolrt_last_error(), as torch's own ops have it.
#include "bridges/torch_threads.h"
#include "lolrt/lolrt.h"

// torch's functions are weak: where an older torch lacks some, the library is loaded all the same, and says so.
#include <torch/csrc/inductor/aoti_torch/c/macros.h>
#undef AOTI_TORCH_EXPORT
#define AOTI_TORCH_EXPORT __attribute__((weak, visibility("default")))

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

lolrt_dtype dtype_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return {LOLRT_CODE_FLOAT, 32, 1};
    case ScalarType::Double:
      return {LOLRT_CODE_FLOAT, 64, 1};
    case ScalarType::Half:
      return {LOLRT_CODE_FLOAT, 16, 1};
    case ScalarType::BFloat16:
      return {LOLRT_CODE_BFLOAT, 16, 1};
    case ScalarType::Int:
      return {LOLRT_CODE_INT, 32, 1};
    case ScalarType::Long:
      return {LOLRT_CODE_INT, 64, 1};
    case ScalarType::Char:
      return {LOLRT_CODE_INT, 8, 1};
    case ScalarType::Byte:
      return {LOLRT_CODE_UINT, 8, 1};
    default:
      STD_TORCH_CHECK(false, "a tensor has a type of numbers that no op takes");
  }
}

// A tensor as the C ABI takes it; NULL if there is none. `flat`: as one dimension, of a contiguous tensor.
class View {
 public:
  View() = default;
  View(const Tensor &x, bool flat = false) : there_(true) {
    const auto sizes = x.sizes(), strides = x.strides();
    shape_.assign(sizes.begin(), sizes.end());
    strides_.assign(strides.begin(), strides.end());
    if (flat) {
      shape_ = {x.numel()};
      strides_ = {1};
    }
    view_.data = x.data_ptr();
    view_.device = {x.is_cpu() ? LOLRT_DEVICE_CPU : 0, 0};
    view_.ndim = static_cast<int32_t>(shape_.size());
    view_.dtype = dtype_of(x.scalar_type());
    view_.shape = shape_.data();
    view_.strides = strides_.data();
  }
  View(const Optional &x) : View(x ? View(*x) : View()) {}
  View(View &&) = default;  // the vectors' memory, and so the pointers to it, stay

  const lolrt_tensor *get() const { return there_ ? &view_ : nullptr; }

 private:
  bool there_ = false;
  std::vector<int64_t> shape_, strides_;
  lolrt_tensor view_{};
};

void require(lolrt_status status) { STD_TORCH_CHECK(status == LOLRT_OK, lolrt_last_error()); }

// A new tensor of the shape of x, contiguous.
Tensor empty(const Tensor &x, ScalarType type) { return torch::stable::new_empty(x, x.sizes(), type); }

// A workspace, which the thread keeps for its next call.
void *workspace_of(uint64_t bytes) {
  static thread_local std::unique_ptr<void, decltype(&std::free)> memory(nullptr, std::free);
  static thread_local uint64_t size = 0;
  if (size < bytes) {
    size = (bytes + 63) / 64 * 64;
    memory.reset(std::aligned_alloc(64, size));
    if (memory == nullptr) size = 0;
    STD_TORCH_CHECK(memory != nullptr, "no memory for a workspace of ", bytes, " bytes");
  }
  return memory.get();
}

void kv_write(const Tensor &k, const Tensor &v, Tensor pages, const Tensor &page_table, const Optional &weight,
              const Optional &rotation, int64_t rotation_first_channel, double eps) {
  const View own_k(k), own_v(v), own_pages(pages), own_table(page_table), own_weight(weight), own_rotation(rotation);
  lolrt_kv_write_desc desc{};
  desc.struct_size = sizeof desc;
  desc.eps = static_cast<float>(eps);
  desc.k = own_k.get();
  desc.v = own_v.get();
  desc.k_weight = own_weight.get();
  desc.rotation = own_rotation.get();
  desc.rotation_first_channel = rotation_first_channel;
  desc.pages = own_pages.get();
  desc.page_table = own_table.get();
  require(lolrt_kv_write(&desc));
}

Tensor normalize_queries(const Tensor &q, const Tensor &weight, const Optional &rotation, int64_t rotation_first_channel,
                         double eps) {
  Tensor out = empty(q, q.scalar_type());
  const View own_q(q), own_weight(weight), own_rotation(rotation), own_out(out);
  lolrt_kv_write_desc desc{};
  desc.struct_size = sizeof desc;
  desc.eps = static_cast<float>(eps);
  desc.q = own_q.get();
  desc.q_weight = own_weight.get();
  desc.rotation = own_rotation.get();
  desc.rotation_first_channel = rotation_first_channel;
  desc.q_out = own_out.get();
  require(lolrt_kv_write(&desc));
  return out;
}

Tensor attend(const Tensor &q, const Tensor &pages, const Tensor &page_table, int64_t page_tokens, const Optional &rotation,
              const Optional &bias, const Optional &mass) {
  Tensor out = empty(q, q.scalar_type());
  const View own_q(q), own_pages(pages), own_table(page_table), own_rotation(rotation), own_bias(bias), own_mass(mass),
      own_out(out);
  lolrt_frame_attention_desc desc{};
  desc.struct_size = sizeof desc;
  desc.q = own_q.get();
  desc.pages = own_pages.get();
  desc.page_table = own_table.get();
  desc.page_tokens = page_tokens;
  desc.rotation = own_rotation.get();
  desc.bias = own_bias.get();
  desc.out = own_out.get();
  desc.mass = own_mass.get();
  require(lolrt_frame_attention_workspace(&desc, &desc.workspace_bytes));
  desc.workspace = workspace_of(desc.workspace_bytes);
  require(lolrt_frame_attention(&desc));
  return out;
}

Tensor frame_attention(const Tensor &q, const Tensor &pages, const Tensor &page_table, int64_t page_tokens,
                       const Optional &rotation, const Optional &bias) {
  return attend(q, pages, page_table, page_tokens, rotation, bias, std::nullopt);
}

Tensor frame_attention_probed(const Tensor &q, const Tensor &pages, const Tensor &page_table, int64_t page_tokens,
                              const Optional &rotation, const Optional &bias, Tensor mass) {
  return attend(q, pages, page_table, page_tokens, rotation, bias, mass);
}

Tensor modulated_norm(Tensor x, const Tensor &scale, const Tensor &shift, const Optional &residual, const Optional &gate,
                      double eps) {
  Tensor out = empty(x, x.scalar_type());
  const View own_x(x), own_scale(scale), own_shift(shift), own_residual(residual), own_gate(gate), own_out(out);
  lolrt_modulated_norm_desc desc{};
  desc.struct_size = sizeof desc;
  desc.eps = static_cast<float>(eps);
  desc.x = own_x.get();
  desc.residual = own_residual.get();
  desc.gate = own_gate.get();
  desc.scale = own_scale.get();
  desc.shift = own_shift.get();
  desc.out = own_out.get();
  require(lolrt_modulated_norm(&desc));
  return out;
}

void gelu(Tensor x) {
  const View own(x);
  lolrt_gelu_desc desc{};
  desc.struct_size = sizeof desc;
  desc.x = own.get();
  require(lolrt_gelu(&desc));
}

std::tuple<Tensor, Tensor> quantize_rows(const Tensor &x) {
  STD_TORCH_CHECK(x.dim() == 3, "quantize_rows: x has ", x.dim(), " dimensions; expected [frames, tokens, channels]");
  Tensor q = empty(x, ScalarType::Byte);
  const std::vector<int64_t> rows(x.sizes().begin(), x.sizes().end() - 1);
  Tensor scale = torch::stable::new_empty(x, rows, ScalarType::Float);
  const View own_x(x), own_q(q), own_scale(scale);
  lolrt_quantize_rows_desc desc{};
  desc.struct_size = sizeof desc;
  desc.x = own_x.get();
  desc.q = own_q.get();
  desc.scale = own_scale.get();
  require(lolrt_quantize_rows(&desc));
  return {q, scale};
}

void dequantize_rows(const Tensor &x, const Tensor &scale, const Tensor &bias, Tensor out) {
  const View own_x(x), own_scale(scale), own_bias(bias), own_out(out);
  lolrt_dequantize_rows_desc desc{};
  desc.struct_size = sizeof desc;
  desc.x = own_x.get();
  desc.scale = own_scale.get();
  desc.bias = own_bias.get();
  desc.out = own_out.get();
  require(lolrt_dequantize_rows(&desc));
}

// A tensor of the sample's shape as one dimension. `kept` holds the copy that a tensor with gaps needs.
View flat(const char *name, const Tensor &x, const Tensor &sample, Tensor &kept) {
  const auto one = x.sizes(), other = sample.sizes();
  STD_TORCH_CHECK(std::vector<int64_t>(one.begin(), one.end()) == std::vector<int64_t>(other.begin(), other.end()),
                  "sampler_step: ", name, " has another shape than the sample");
  // As after its storage was resized to nothing, of which torch would make a copy.
  STD_TORCH_CHECK(x.data_ptr() != nullptr || x.numel() == 0, "sampler_step: ", name, ": its data pointer is NULL");
  kept = torch::stable::contiguous(x);
  return View(kept, true);
}

Tensor sampler_step(const Tensor &sample, double level, const Tensor &velocity, double after, const Optional &noise) {
  Tensor out = empty(sample, ScalarType::Float), kept[3];
  const View own_sample = flat("sample", sample, sample, kept[0]), own_velocity = flat("velocity", velocity, sample, kept[1]);
  const View own_noise = noise ? flat("noise", *noise, sample, kept[2]) : View(), own_out(out, true);
  lolrt_sampler_step_desc desc{};
  desc.struct_size = sizeof desc;
  desc.level = level;
  desc.after = after;
  desc.sample = own_sample.get();
  desc.velocity = own_velocity.get();
  desc.noise = own_noise.get();
  desc.out = own_out.get();
  require(lolrt_sampler_step(&desc));
  return out;
}

void channel_norm(const Tensor &x, const Tensor &gamma, Tensor out, bool silu) {
  const View own_x(x), own_gamma(gamma), own_out(out);
  lolrt_channel_norm_desc desc{};
  desc.struct_size = sizeof desc;
  desc.silu = silu;
  desc.x = own_x.get();
  desc.gamma = own_gamma.get();
  desc.out = own_out.get();
  require(lolrt_channel_norm(&desc));
}

void conv3d(const Tensor &x, const Tensor &weight, const Tensor &bias, Tensor out, const Optional &past,
            const Optional &residual) {
  const View own_x(x), own_weight(weight), own_bias(bias), own_out(out), own_past(past), own_residual(residual);
  lolrt_conv3d_desc desc{};
  desc.struct_size = sizeof desc;
  desc.past = own_past.get();
  desc.x = own_x.get();
  desc.weight = own_weight.get();
  desc.bias = own_bias.get();
  desc.residual = own_residual.get();
  desc.out = own_out.get();
  require(lolrt_conv3d(&desc));
}

struct Op {
  const char *schema;
  void (*boxed)(StableIValue *stack, uint64_t arguments, uint64_t results);
};

const Op kOps[] = {
    {"kv_write(Tensor k, Tensor v, Tensor(a!) pages, Tensor page_table, Tensor? weight, Tensor? rotation, "
     "int rotation_first_channel, float eps) -> ()",
     TORCH_BOX(&kv_write)},
    {"normalize_queries(Tensor q, Tensor weight, Tensor? rotation, int rotation_first_channel, float eps) -> Tensor",
     TORCH_BOX(&normalize_queries)},
    {"frame_attention(Tensor q, Tensor pages, Tensor page_table, int page_tokens, Tensor? rotation, Tensor? bias) -> Tensor",
     TORCH_BOX(&frame_attention)},
    {"frame_attention_probed(Tensor q, Tensor pages, Tensor page_table, int page_tokens, Tensor? rotation, Tensor? bias, "
     "Tensor(a!) mass) -> Tensor",
     TORCH_BOX(&frame_attention_probed)},
    {"modulated_norm(Tensor(a!) x, Tensor scale, Tensor shift, Tensor? residual, Tensor? gate, float eps) -> Tensor",
     TORCH_BOX(&modulated_norm)},
    {"gelu(Tensor(a!) x) -> ()", TORCH_BOX(&gelu)},
    {"quantize_rows(Tensor x) -> (Tensor, Tensor)", TORCH_BOX(&quantize_rows)},
    {"dequantize_rows(Tensor x, Tensor scale, Tensor bias, Tensor(a!) out) -> ()", TORCH_BOX(&dequantize_rows)},
    {"sampler_step(Tensor sample, float level, Tensor velocity, float after, Tensor? noise) -> Tensor", TORCH_BOX(&sampler_step)},
    {"channel_norm(Tensor x, Tensor gamma, Tensor(a!) out, bool silu) -> ()", TORCH_BOX(&channel_norm)},
    {"conv3d(Tensor x, Tensor weight, Tensor bias, Tensor(a!) out, Tensor? past, Tensor? residual) -> ()", TORCH_BOX(&conv3d)},
};

// Whether this process has a torch with the functions that are used here; tells if not.
bool there_is_a_known_torch() {
  const uint64_t found = aoti_torch_abi_version == nullptr ? 0 : aoti_torch_abi_version();
  if (found >= TORCH_TARGET_VERSION) return true;
  char version[32] = "an older one";
  const auto part = [](uint64_t of, int shift) { return static_cast<int>(of >> shift & 255); };
  if (found != 0) std::snprintf(version, sizeof version, "%d.%d.%d", part(found, 56), part(found, 48), part(found, 40));
  std::fprintf(stderr, "liblolrt_torch registers no ops: it is for torch %d.%d or newer, and this process has %s: update torch\n",
               part(TORCH_TARGET_VERSION, 56), part(TORCH_TARGET_VERSION, 48), version);
  return false;
}

// Not by STABLE_TORCH_LIBRARY: it dies where the ops are there already, in a program whose lolrt.ops has registered them. That is
// asked of torch by trying. The registrations stay as long as the process.
[[maybe_unused]] const bool registered = [] {
  if (!there_is_a_known_torch()) return false;
  TorchLibraryHandle definitions = nullptr, kernels = nullptr;
  if (aoti_torch_library_init_def("lolrt", __FILE__, __LINE__, &definitions) != AOTI_TORCH_SUCCESS) return false;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_library_init_impl("lolrt", "CPU", __FILE__, __LINE__, &kernels));
  for (const Op &op : kOps) {
    const std::string name(op.schema, std::strchr(op.schema, '('));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_library_def(definitions, op.schema));
    STABLE_TORCH_ERROR_CODE_CHECK(torch_library_impl(kernels, name.c_str(), op.boxed, TORCH_ABI_VERSION));
  }
  lolrt::use_torch_threads();
  return true;
}();

}  // namespace
