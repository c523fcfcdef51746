// The calls of the ops as lists of named arguments, for the fuzzers of the bridges: the fields of the op's descriptor, in its
// order, without `struct_size`, workspace and `stream`. Tensors are those of tensors.h, and mostly fit each other.
#pragma once

#include "tensors.h"

#include <string_view>

namespace fuzz {

struct Argument {
  enum Kind { kTensor, kInteger, kReal };

  const char *name;
  Kind kind;
  const lolrt_tensor *tensor;  // NULL: none
  int64_t integer;
  double real;
};

class Call {
 public:
  // strided: tensors may have gaps.
  explicit Call(Bytes &bytes, bool strided = true) : bytes_(bytes), tensors_(bytes, strided) {}

  Call &tensor(const char *name, lolrt_dtype dtype, std::initializer_list<int64_t> right, bool given = true) {
    arguments_.push_back({name, Argument::kTensor, given ? tensors_(dtype, right) : nullptr, 0, 0.0});
    return *this;
  }
  Call &integer(const char *name, int64_t right) {
    arguments_.push_back({name, Argument::kInteger, nullptr, bytes_.or_number(right), 0.0});
    return *this;
  }
  Call &real(const char *name, double right) {
    arguments_.push_back({name, Argument::kReal, nullptr, 0, bytes_.rarely() ? static_cast<double>(bytes_.number()) : right});
    return *this;
  }

  const std::vector<Argument> &arguments() const { return arguments_; }
  // NULL if there is none with this name.
  const Argument *find(std::string_view name) const {
    for (const Argument &argument : arguments_) {
      if (argument.name == name) return &argument;
    }
    return nullptr;
  }
  Tensors &tensors() { return tensors_; }
  const Tensors &tensors() const { return tensors_; }

 private:
  Bytes &bytes_;
  Tensors tensors_;
  std::vector<Argument> arguments_;
};

inline void kv_write(Bytes &bytes, Call &call, lolrt_dtype dtype) {
  const int64_t frames = 1 + bytes.below(3), tokens = 1 + bytes.below(20), heads = 1 + bytes.below(2),
                dim = 2 * (1 + bytes.below(20));
  int64_t elements = 1;
  lolrt_page_elements(LOLRT_DEVICE_CPU, dtype, tokens, heads, dim, &elements);
  const auto rows = {frames, tokens, heads, dim};
  const bool q = bytes.next() % 2;
  call.real("eps", 1e-6).tensor("q", dtype, rows, q).tensor("k", dtype, rows).tensor("v", dtype, rows);
  call.tensor("q_weight", dtype, {heads, dim}, q).tensor("k_weight", dtype, {heads, dim}, bytes.next() % 2);
  call.tensor("rotation", kFloat32, {tokens, 1, 2}, bytes.next() % 2).integer("rotation_first_channel", 0);
  call.tensor("q_out", dtype, rows, q).tensor("pages", dtype, {frames + 1, elements}).tensor("page_table", kInt32, {frames});
}

inline void frame_attention(Bytes &bytes, Call &call, lolrt_dtype dtype) {
  const int64_t frames = 1 + bytes.below(3), tokens = 1 + bytes.below(20), heads = 1 + bytes.below(2),
                dim = 2 * (1 + bytes.below(20)), page_tokens = 1 + bytes.below(20), pages = 1 + bytes.below(3);
  int64_t elements = 1;
  lolrt_page_elements(LOLRT_DEVICE_CPU, dtype, page_tokens, heads, dim, &elements);
  const bool with_rotation = bytes.next() % 2, with_bias = bytes.next() % 2, with_mass = bytes.next() % 2;
  const auto rows = {frames, tokens, heads, dim};
  call.real("scale", 0).tensor("q", dtype, rows).tensor("pages", dtype, {3, elements}).tensor("page_table", kInt32, {pages});
  call.integer("page_tokens", page_tokens).tensor("rotation", kFloat32, {pages, frames, heads, 1, 2}, with_rotation);
  call.tensor("bias", kFloat32, {pages, heads}, with_bias).tensor("out", dtype, rows);
  call.tensor("mass", kFloat32, {pages, frames, heads}, with_mass);
}

inline void modulated_norm(Bytes &bytes, Call &call, lolrt_dtype dtype) {
  const int64_t frames = 1 + bytes.below(3), tokens = 1 + bytes.below(9), channels = 1 + bytes.below(70);
  const auto rows = {frames, tokens, channels};
  const bool gated = bytes.next() % 2;
  call.real("eps", 1e-6).tensor("x", dtype, rows).tensor("residual", dtype, rows, gated);
  call.tensor("gate", kFloat32, {frames, channels}, gated).tensor("scale", kFloat32, {1, channels});
  call.tensor("shift", kFloat32, {frames, channels}).tensor("out", dtype, rows);
}

inline void gelu(Bytes &bytes, Call &call, lolrt_dtype dtype) {
  call.tensor("x", dtype, {1 + bytes.below(3), 1 + bytes.below(9), 1 + bytes.below(70)});
}

inline void quantize_rows(Bytes &bytes, Call &call, lolrt_dtype dtype) {
  const int64_t frames = 1 + bytes.below(3), tokens = 1 + bytes.below(9), channels = 1 + bytes.below(70);
  const auto rows = {frames, tokens, channels};
  call.tensor("x", dtype, rows).tensor("q", kUint8, rows).tensor("scale", kFloat32, {frames, tokens});
}

inline void dequantize_rows(Bytes &bytes, Call &call, lolrt_dtype dtype) {
  const int64_t frames = 1 + bytes.below(3), tokens = 1 + bytes.below(9), channels = 1 + bytes.below(70);
  const auto rows = {frames, tokens, channels};
  call.tensor("x", kFloat32, rows).tensor("scale", kFloat32, {frames, tokens}).tensor("bias", kFloat32, {channels});
  call.tensor("out", dtype, rows);
}

inline void sampler_step(Bytes &bytes, Call &call, lolrt_dtype) {
  const auto size = {1 + bytes.below(200)};
  call.real("level", 0.9).real("after", 0.5).tensor("sample", kFloat32, size).tensor("velocity", kFloat32, size);
  call.tensor("noise", kFloat32, size).tensor("out", kFloat32, size);
}

inline void channel_norm(Bytes &bytes, Call &call, lolrt_dtype dtype) {
  const int64_t frames = 1 + bytes.below(2), rows = 1 + bytes.below(4), columns = 1 + bytes.below(4),
                channels = 1 + bytes.below(40), margin = bytes.below(3);
  call.integer("silu", 1).tensor("x", dtype, {frames, rows, columns, channels}).tensor("gamma", kFloat32, {channels});
  call.tensor("out", kFloat32, {frames, rows + 2 * margin, columns + 2 * margin, channels});
}

inline void conv3d(Bytes &bytes, Call &call, lolrt_dtype) {
  const int64_t taps = 1 + bytes.below(3), side = 1 + bytes.below(3), in = 1 + bytes.below(20), out = 1 + bytes.below(40);
  const int64_t frames = 1 + bytes.below(2), rows = side + bytes.below(3), columns = side + bytes.below(3),
                blocks = (out + 15) / 16;
  const auto result = {frames, rows - side + 1, columns - side + 1, out};
  call.tensor("past", kFloat32, {taps - 1, rows, columns, in}, taps > 1).tensor("x", kFloat32, {frames, rows, columns, in});
  call.tensor("weight", kFloat32, {blocks, taps, side, side, in, 16}).tensor("bias", kFloat32, {blocks, 16});
  call.tensor("residual", kFloat32, result).tensor("out", kFloat32, result);
}

struct Op {
  const char *name;
  void (*make)(Bytes &, Call &, lolrt_dtype);
};

// Prints what was found and ends.
[[noreturn]] inline void fail(const char *what, const char *text) {
  std::fprintf(stderr, "%s: %s\n", what, text);
  std::abort();
}

}  // namespace fuzz
