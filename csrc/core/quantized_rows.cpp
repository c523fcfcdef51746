// lolrt_quantize_rows and lolrt_dequantize_rows: check the descriptors and hand them to the kernels.
#include "core/ops.h"
#include "core/status.h"

using namespace lolrt;

namespace {

ChannelRows channel_rows(const View &view) { return {view.data<void>(), view.stride(0), view.stride(1)}; }

QuantizeRows checked(const lolrt_quantize_rows_desc &desc) {
  Checker check("quantize_rows");
  QuantizeRows op{};
  op.dtype = check.type("x", desc.x);
  const View x = check("x", desc.x, op.dtype, {{"frames"}, {"tokens"}, {"channels"}}, Layout::strided);
  op.x = channel_rows(x);
  op.frames = x.size(0);
  op.tokens = x.size(1);
  op.channels = x.size(2);
  const auto shape = {Dim{"frames", op.frames}, Dim{"tokens", op.tokens}, Dim{"channels", op.channels}};
  op.q = channel_rows(check.output("q", desc.q, DType::uint8, shape, Layout::strided));
  op.scale = check.output("scale", desc.scale, DType::float32, {{"frames", op.frames}, {"tokens", op.tokens}}).data<float>();
  return op;
}

DequantizeRows checked(const lolrt_dequantize_rows_desc &desc) {
  Checker check("dequantize_rows");
  DequantizeRows op{};
  op.dtype = check.type("out", desc.out);
  const View x = check("x", desc.x, DType::float32, {{"frames"}, {"tokens"}, {"channels"}}, Layout::strided);
  op.x = channel_rows(x);
  op.frames = x.size(0);
  op.tokens = x.size(1);
  op.channels = x.size(2);
  op.scale = check("scale", desc.scale, DType::float32, {{"frames", op.frames}, {"tokens", op.tokens}}).data<float>();
  op.bias = check("bias", desc.bias, DType::float32, {{"channels", op.channels}}).data<float>();
  const auto shape = {Dim{"frames", op.frames}, Dim{"tokens", op.tokens}, Dim{"channels", op.channels}};
  op.out = channel_rows(check.output("out", desc.out, op.dtype, shape, Layout::strided));
  return op;
}

}  // namespace

lolrt_status lolrt_quantize_rows(const lolrt_quantize_rows_desc *desc) {
  return guarded([&] {
    Checker("quantize_rows").descriptor(desc, desc ? desc->struct_size : 0, sizeof *desc);
    const QuantizeRows op = checked(*desc);
    kernels().quantize_rows(op);
  });
}

lolrt_status lolrt_dequantize_rows(const lolrt_dequantize_rows_desc *desc) {
  return guarded([&] {
    Checker("dequantize_rows").descriptor(desc, desc ? desc->struct_size : 0, sizeof *desc);
    const DequantizeRows op = checked(*desc);
    kernels().dequantize_rows(op);
  });
}
