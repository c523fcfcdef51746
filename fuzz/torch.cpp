// Fuzzes the ops that liblolrt_torch registers: whatever torch's dispatcher passes on, an op computes, or raises an exception
// that says why, and touches nothing else. Tensors are those of tensors.h as torch's own, and now and then of a kind without
// memory.
//
// Only the bridge, the library and the fuzzer are compiled with the sanitizers. torch is as it was installed, but its memory
// comes from AddressSanitizer's allocator too.
//
//     TORCH=$(python -c "import torch; print(torch.__path__[0])")
//     FLAGS="-std=c++20 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -DSTANDALONE -Icsrc/include -Icsrc
//       -isystem $TORCH/include -isystem $TORCH/include/torch/csrc/api/include -DLOLRT_VERSION=\"0\"
//       -DLOLRT_SHARED_HEADERS=\"0\""
//     g++ $FLAGS -DTORCH_TARGET_VERSION=0x020a000000000000 -c csrc/bridges/torch.cpp -o build/fuzz_torch_bridge.o
//     g++ $FLAGS fuzz/torch.cpp build/fuzz_torch_bridge.o csrc/core/*.cpp csrc/cpu/scalar.cpp -ldl -L$TORCH/lib -ltorch_cpu -lc10
//       -Wl,-rpath,$TORCH/lib -o build/fuzz_torch
//     ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=1024 build/fuzz_torch INPUTS SEED
//
// With clang++ -fsanitize=fuzzer,address,undefined and without -DSTANDALONE, libFuzzer draws the bytes.
#include "calls.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <stdexcept>
#include <string>

using namespace fuzz;

long calls = 0;

namespace {

bool is(lolrt_dtype one, lolrt_dtype other) { return std::memcmp(&one, &other, sizeof one) == 0; }

class Arguments {
 public:
  Arguments(Bytes &bytes, const Call &call) : bytes_(bytes), call_(call) {}

  // As the schema has it. Throws what torch throws where it cannot have such a tensor.
  c10::IValue operator()(const c10::Argument &wanted, std::string_view name) {
    if (bytes_.rarely()) return anything();
    const Argument &given = *call_.find(name);
    if (given.kind == Argument::kReal) return given.real;
    if (given.kind == Argument::kInteger && wanted.type()->kind() == c10::TypeKind::BoolType) return given.integer % 2 != 0;
    if (given.kind == Argument::kInteger) return given.integer;
    return given.tensor == nullptr || given.tensor->shape == nullptr ? c10::IValue() : c10::IValue(tensor(*given.tensor));
  }

 private:
  // torch refuses these itself, some by ending the process.
  static bool is_none_of_torchs(const lolrt_tensor &view) {
    using Wide = __int128;
    Wide elements = 1, reach = 0;
    for (int i = view.ndim - 1; i >= 0; --i) {
      const Wide size = view.shape[i], stride = view.strides ? Wide{view.strides[i]} : elements;
      if (size < 0 || stride < 0) return true;
      elements = std::min(elements * std::max<Wide>(size, 1), Wide{1} << 63);
      reach = std::min(reach + (size - 1) * stride, Wide{1} << 63);
    }
    return elements > INT64_MAX / 64 || reach > INT64_MAX / 64;
  }

  at::Tensor tensor(const lolrt_tensor &view) {
    if (view.ndim < 0 || view.ndim > kDims || is_none_of_torchs(view)) throw std::invalid_argument("no tensor of torch's");
    const at::IntArrayRef sizes(view.shape, static_cast<size_t>(view.ndim));
    const bool known = is(view.dtype, kFloat32) || is(view.dtype, kBfloat16) || is(view.dtype, kInt32) || is(view.dtype, kUint8);
    at::ScalarType type = is(view.dtype, kFloat32)    ? at::kFloat
                          : is(view.dtype, kBfloat16) ? at::kBFloat16
                          : is(view.dtype, kInt32)    ? at::kInt
                                                      : at::kByte;
    if (!known) type = static_cast<at::ScalarType>(bytes_.below(static_cast<int64_t>(at::ScalarType::NumOptions)));
    // The memory is of the known type.
    void *data = known && view.data ? static_cast<char *>(view.data) + view.byte_offset : nullptr;
    const auto blob = [&] { return at::for_blob(data, sizes); };
    const at::TensorOptions options(type);
    at::Tensor made =
        view.strides == nullptr
            ? blob().options(options).target_device(at::kCPU).make_tensor()
            : blob().strides(at::IntArrayRef(view.strides, sizes.size())).options(options).target_device(at::kCPU).make_tensor();
    if (bytes_.rarely() && at::isFloatingType(type)) made.set_requires_grad(true);
    return made;
  }

  c10::IValue anything() {
    switch (bytes_.next() % 10) {
      case 0:
        return at::Tensor();
      case 1:
        return at::zeros({2, 3, 4}).to_sparse();
      case 2:
        return at::empty({1, 2, 3}, at::TensorOptions(at::kMeta));
      case 3:
        return at::_efficientzerotensor({1, 2, 3});
      case 4:
        return at::_neg_view(at::ones({1, 2, 3}));
      case 5:
        return at::zeros({});
      case 6:
        return at::empty({1, 0, 3});
      case 7:
        return bytes_.number();
      case 8:
        return std::string("tensor");
      default:
        return c10::IValue();
    }
  }

  Bytes &bytes_;
  const Call &call_;
};

// Of an argument in the call's list.
std::string name_of(const Op &op, const c10::Argument &argument) {
  const std::string_view called = op.name;
  if (argument.name() != "weight" || called == "conv3d") return argument.name();
  return called == "kv_write" ? "k_weight" : "q_weight";
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static constexpr Op ops[] = {{"kv_write", kv_write},
                               {"normalize_queries", kv_write},
                               {"frame_attention", frame_attention},
                               {"frame_attention_probed", frame_attention},
                               {"modulated_norm", modulated_norm},
                               {"gelu", gelu},
                               {"quantize_rows", quantize_rows},
                               {"dequantize_rows", dequantize_rows},
                               {"sampler_step", sampler_step},
                               {"channel_norm", channel_norm},
                               {"conv3d", conv3d}};
  static const bool one_thread = lolrt_set_threads(1) == LOLRT_OK;
  if (!one_thread) return 1;
  Bytes bytes(data, size);
  const uint8_t choice = bytes.next();
  const Op &op = ops[choice % std::size(ops)];
  Call call(bytes);
  op.make(bytes, call, choice & 128 ? kBfloat16 : kFloat32);
  const c10::OperatorHandle handle =
      c10::Dispatcher::singleton().findSchemaOrThrow(("lolrt::" + std::string(op.name)).c_str(), "");
  ++calls;
  try {
    Arguments arguments(bytes, call);
    torch::jit::Stack stack;
    for (const c10::Argument &wanted : handle.schema().arguments()) stack.push_back(arguments(wanted, name_of(op, wanted)));
    handle.schema().checkAndNormalizeInputs(stack);  // as calls from Python are checked
    handle.callBoxed(&stack);
  } catch (const std::exception &error) {
    if (std::strlen(error.what()) == 0) fail(op.name, "an exception without a reason");
  }
  return 0;
}
