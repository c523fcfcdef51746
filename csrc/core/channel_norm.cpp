// lolrt_channel_norm: checks the descriptor and hands it to the kernels.
#include "core/checks.h"
#include "core/status.h"

#include <algorithm>

using namespace lolrt;

namespace {

constexpr int64_t kMostRows = INT64_MAX / 4;

ChannelNorm checked(const lolrt_channel_norm_desc &desc) {
  Checker check("channel_norm");
  ChannelNorm op{};
  op.silu = desc.silu != 0;
  op.dtype = check.type("x", desc.x);
  op.out_dtype = check.type("out", desc.out);
  const View x = check("x", desc.x, op.dtype, {{"frames"}, {"rows"}, {"columns"}, {"channels"}}, Layout::strided);
  op.x = pixels(x);
  op.frames = x.size(0);
  op.rows = x.size(1);
  op.columns = x.size(2);
  op.channels = x.size(3);
  op.gamma = check("gamma", desc.gamma, DType::float32, {{"channels", op.channels}}).data<float>();
  // The margin is what out has in addition. It is not added to a size that exceeds any memory, which would overflow.
  const bool has_rows = desc.out->ndim == 4 && desc.out->shape != nullptr;
  const int64_t out_rows = has_rows ? std::min(desc.out->shape[1], kMostRows) : 0;
  op.margin = out_rows > op.rows ? (out_rows - op.rows) / 2 : 0;
  const auto shape = {Dim{"frames", op.frames}, Dim{"rows + 2 m", op.rows + 2 * op.margin},
                      Dim{"columns + 2 m", op.columns + 2 * op.margin}, Dim{"channels", op.channels}};
  op.out = pixels(check.output("out", desc.out, op.out_dtype, shape, Layout::strided));
  return op;
}

}  // namespace

lolrt_status lolrt_channel_norm(const lolrt_channel_norm_desc *desc) {
  return guarded([&] {
    Checker("channel_norm").descriptor(desc, desc ? desc->struct_size : 0, sizeof *desc);
    const ChannelNorm op = checked(*desc);
    kernels().channel_norm(op);
  });
}
