// Fuzzes the handlers for JAX: whatever buffers and attributes a call frame has, of whatever types and names, a handler computes,
// or returns an error that says why, and touches nothing else. The frames, and the host's side of XLA's FFI, are made here:
// XLA itself is not in the process.
//
//     g++ -std=c++17 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -DSTANDALONE -Icsrc/include -Icsrc
//       -isystem $(python -c "import jax; print(jax.ffi.include_dir())") -DLOLRT_VERSION='"0"' -DLOLRT_SHARED_HEADERS='"0"'
//       fuzz/jax.cpp csrc/bridges/jax.cpp csrc/core/*.cpp csrc/cpu/scalar.cpp -ldl -o build/fuzz_jax
//     build/fuzz_jax INPUTS SEED
//
// With clang++ -fsanitize=fuzzer,address,undefined and without -DSTANDALONE, libFuzzer draws the bytes.
#include "calls.h"

#include "xla/ffi/api/c_api.h"

#include <string>

using namespace fuzz;

long calls = 0;

struct XLA_FFI_Error {
  XLA_FFI_Error_Code code;
  std::string message;
};

#define OPS(op) op(kv_write) op(frame_attention) op(modulated_norm) op(gelu) op(sampler_step)
#define DECLARE(op) extern "C" XLA_FFI_Error *lolrt_jax_##op(XLA_FFI_CallFrame *);
OPS(DECLARE)

namespace {

XLA_FFI_Error *create(XLA_FFI_Error_Create_Args *args) { return new XLA_FFI_Error{args->errc, args->message}; }
void get_message(XLA_FFI_Error_GetMessage_Args *args) { args->message = args->error->message.c_str(); }
void destroy(XLA_FFI_Error_Destroy_Args *args) { delete args->error; }

XLA_FFI_DataType type_of(lolrt_dtype dtype) {
  switch (dtype.code) {
    case LOLRT_CODE_FLOAT:
      return XLA_FFI_DataType_F32;
    case LOLRT_CODE_BFLOAT:
      return XLA_FFI_DataType_BF16;
    default:
      return dtype.bits == 32 ? XLA_FFI_DataType_S32 : XLA_FFI_DataType_U8;
  }
}

bool is_right(lolrt_dtype dtype) {
  const auto same = [&](lolrt_dtype other) { return std::memcmp(&dtype, &other, sizeof dtype) == 0; };
  return same(kFloat32) || same(kBfloat16) || same(kInt32) || same(kUint8);
}

// What lolrt.jax passes, and now and then something else.
class Frame {
 public:
  Frame(Bytes &bytes, const Call &call, std::string_view results) : bytes_(bytes) {
    for (const Argument &argument : call.arguments()) {
      if (argument.kind != Argument::kTensor) {
        scalar(argument);
      } else if (argument.tensor != nullptr && argument.tensor->shape != nullptr) {
        place(argument, results);
      }
    }
    // In the order of lolrt.jax: a result that is also an argument comes last.
    std::string names = join(arguments_) + ";" + join(results_);
    if (bytes_.rarely()) spoil(names);
    names_ = std::move(names);
    span_ = {names_.data(), names_.size()};
    attribute("names", bytes_.rarely() ? XLA_FFI_AttrType_SCALAR : XLA_FFI_AttrType_STRING, &span_);
    if (attributes_.back().type == XLA_FFI_AttrType_SCALAR) attributes_.back().value = number(XLA_FFI_DataType_S64, 1);
  }

  // Returns whether the call succeeded with all buffers as they should be.
  bool operator()(const char *op, XLA_FFI_Handler *handler) {
    // There are no other types, and what XLA's header does about one is undefined.
    std::vector<XLA_FFI_ArgType> argument_types(arguments_.size(), XLA_FFI_ArgType_BUFFER);
    std::vector<XLA_FFI_RetType> result_types(results_.size(), XLA_FFI_RetType_BUFFER);
    std::sort(attributes_.begin(), attributes_.end(),
              [](const Attribute &one, const Attribute &other) { return std::strcmp(one.name, other.name) < 0; });
    std::vector<void *> arguments, results, values;
    std::vector<XLA_FFI_ByteSpan> spans;
    std::vector<XLA_FFI_ByteSpan *> names;
    std::vector<XLA_FFI_AttrType> types;
    for (Buffer *each : arguments_) arguments.push_back(&each->buffer);
    for (Buffer *each : results_) results.push_back(&each->buffer);
    for (const Attribute &each : attributes_) spans.push_back({each.name, std::strlen(each.name)});
    for (size_t i = 0; i < attributes_.size(); ++i) {
      names.push_back(&spans[i]);
      types.push_back(attributes_[i].type);
      values.push_back(attributes_[i].value);
    }
    XLA_FFI_Api api{};
    api.struct_size = XLA_FFI_Api_STRUCT_SIZE;
    api.XLA_FFI_Error_Create = create;
    api.XLA_FFI_Error_GetMessage = get_message;
    api.XLA_FFI_Error_Destroy = destroy;
    XLA_FFI_CallFrame frame{};
    frame.struct_size = bytes_.rarely() ? bytes_.next() : XLA_FFI_CallFrame_STRUCT_SIZE;
    frame.api = &api;
    frame.stage = bytes_.rarely() ? static_cast<XLA_FFI_ExecutionStage>(bytes_.next() % 4) : XLA_FFI_ExecutionStage_EXECUTE;
    frame.args = {XLA_FFI_Args_STRUCT_SIZE, nullptr, static_cast<int64_t>(arguments.size()), argument_types.data(),
                  arguments.data()};
    frame.rets = {XLA_FFI_Rets_STRUCT_SIZE, nullptr, static_cast<int64_t>(results.size()), result_types.data(), results.data()};
    frame.attrs = {
        XLA_FFI_Attrs_STRUCT_SIZE, nullptr, static_cast<int64_t>(attributes_.size()), types.data(), names.data(), values.data()};
    const std::unique_ptr<XLA_FFI_Error> error(handler(&frame));
    if (error && (error->message.empty() || error->code == XLA_FFI_Error_Code_OK || error->code == XLA_FFI_Error_Code_INTERNAL)) {
      fail(op, "an error without a reason, or that is not the caller's");
    }
    return !error && !spoilt_;
  }

 private:
  struct Buffer {
    const char *name;
    XLA_FFI_Buffer buffer;
  };
  struct Attribute {
    const char *name;
    XLA_FFI_AttrType type;
    void *value;
  };

  void place(const Argument &argument, std::string_view results) {
    const lolrt_tensor &tensor = *argument.tensor;
    const bool right = is_right(tensor.dtype);
    spoilt_ = spoilt_ || !right;
    Buffer &made = buffers_.emplace_back();
    made.name = argument.name;
    made.buffer = {XLA_FFI_Buffer_STRUCT_SIZE,
                   nullptr,
                   right ? type_of(tensor.dtype) : static_cast<XLA_FFI_DataType>(bytes_.next() % 40),
                   static_cast<char *>(tensor.data) + (tensor.data ? tensor.byte_offset : 0),
                   tensor.ndim,
                   tensor.shape};
    // A type that is not that of the memory: no memory.
    if (!right) made.buffer.data = nullptr;
    const std::string_view name = argument.name;
    const bool written = results.find(std::string(",") + argument.name + ",") != std::string_view::npos;
    const bool in_place = name == "pages" || name == "x";
    if (!written || in_place) arguments_.push_back(&made);
    if (written) results_.push_back(&made);
    if (bytes_.rarely() && !arguments_.empty()) {  // one more, or one less
      spoilt_ = true;
      if (bytes_.next() % 2) {
        arguments_.pop_back();
      } else {
        arguments_.insert(arguments_.end(), static_cast<size_t>(bytes_.below(20)), &made);
      }
    }
  }

  void scalar(const Argument &argument) {
    if (bytes_.rarely()) return;
    const std::string_view name = argument.name;
    if (argument.kind == Argument::kInteger) {
      attribute(argument.name, XLA_FFI_AttrType_SCALAR, number(XLA_FFI_DataType_S64, argument.integer));
    } else if (name == "eps") {
      attribute(argument.name, XLA_FFI_AttrType_SCALAR, number(XLA_FFI_DataType_F32, static_cast<float>(argument.real)));
    } else {
      attribute(argument.name, XLA_FFI_AttrType_SCALAR, number(XLA_FFI_DataType_F64, argument.real));
    }
  }

  void attribute(const char *name, XLA_FFI_AttrType type, void *value) { attributes_.push_back({name, type, value}); }

  template <class T>
  XLA_FFI_Scalar *number(XLA_FFI_DataType type, T value) {
    static_assert(sizeof value <= sizeof(int64_t));
    int64_t &kept = numbers_.emplace_back(0);
    std::memcpy(&kept, &value, sizeof value);
    if (bytes_.rarely()) type = static_cast<XLA_FFI_DataType>(bytes_.below(13));  // those without a gap between them
    return &scalars_.emplace_back(XLA_FFI_Scalar{type, &kept});
  }

  static std::string join(const std::vector<Buffer *> &buffers) {
    std::string all;
    for (const Buffer *each : buffers) all += (all.empty() ? "" : ",") + std::string(each->name);
    return all;
  }

  void spoil(std::string &names) {
    spoilt_ = true;
    const auto at = static_cast<size_t>(bytes_.below(static_cast<int64_t>(names.size()) + 1));
    switch (bytes_.next() % 4) {
      case 0:
        names.erase(at);
        break;
      case 1:
        names.insert(at, 1, ";,x\0"[bytes_.next() % 4]);
        break;
      case 2:
        names.clear();
        break;
      default:
        names = std::string(names.rbegin(), names.rend());
    }
  }

  Bytes &bytes_;
  std::list<Buffer> buffers_;
  std::vector<Buffer *> arguments_, results_;
  std::vector<Attribute> attributes_;
  std::list<int64_t> numbers_;
  std::list<XLA_FFI_Scalar> scalars_;
  std::string names_;
  XLA_FFI_ByteSpan span_{};
  bool spoilt_ = false;
};

struct Target {
  Op op;
  XLA_FFI_Handler *handler;
  const char *results;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static constexpr Target targets[] = {{{"kv_write", kv_write}, lolrt_jax_kv_write, ",q_out,pages,"},
                                       {{"frame_attention", frame_attention}, lolrt_jax_frame_attention, ",out,mass,"},
                                       {{"modulated_norm", modulated_norm}, lolrt_jax_modulated_norm, ",x,out,"},
                                       {{"gelu", gelu}, lolrt_jax_gelu, ",x,"},
                                       {{"sampler_step", sampler_step}, lolrt_jax_sampler_step, ",out,"}};
  static const bool one_thread = lolrt_set_threads(1) == LOLRT_OK;
  if (!one_thread) return 1;
  Bytes bytes(data, size);
  const uint8_t choice = bytes.next();
  const Target &target = targets[choice % std::size(targets)];
  Call call(bytes, false);
  target.op.make(bytes, call, choice & 128 ? kBfloat16 : kFloat32);
  ++calls;
  if (Frame(bytes, call, target.results)(target.op.name, target.handler)) call.tensors().check_taken();
  return 0;
}
