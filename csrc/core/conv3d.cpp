// lolrt_conv3d: checks the descriptor and hands it to the kernels.
#include "core/checks.h"
#include "core/status.h"

#include <cinttypes>

using namespace lolrt;

namespace {

// An input. Its pixels must be adjacent along a row, because the kernel reads a row of taps as one block.
Pixels input_pixels(const char *name, const View &view) {
  if (view.size(2) > 1 && view.stride(2) != view.size(3)) {
    fail(LOLRT_INVALID_ARGUMENT,
         "conv3d: %s: its columns are %" PRId64 " elements apart; expected adjacent ones, %" PRId64 " apart: copy it first", name,
         view.stride(2), view.size(3));
  }
  return pixels(view);
}

Conv3d checked(const lolrt_conv3d_desc &desc) {
  const Checker check("conv3d");
  Conv3d op{};
  const View weight =
      check("weight", desc.weight, DType::float32,
            {{"blocks"}, {"kernel_frames"}, {"kernel_rows"}, {"kernel_columns"}, {"in_channels"}, {"16", Conv3d::block}});
  op.weight = weight.data<float>();
  op.kernel_frames = weight.size(1);
  op.kernel_rows = weight.size(2);
  op.kernel_columns = weight.size(3);
  op.in_channels = weight.size(4);
  op.bias = check("bias", desc.bias, DType::float32, {{"blocks", weight.size(0)}, {"16", Conv3d::block}}).data<float>();

  const View x =
      check("x", desc.x, DType::float32, {{"frames"}, {"rows"}, {"columns"}, {"in_channels", op.in_channels}}, Layout::strided);
  op.x = input_pixels("x", x);
  op.frames = x.size(0);
  op.rows = x.size(1) - op.kernel_rows + 1;
  op.columns = x.size(2) - op.kernel_columns + 1;
  if (op.rows < 1 || op.columns < 1) {
    fail(LOLRT_INVALID_ARGUMENT, "conv3d: x has %" PRId64 " rows of %" PRId64 ", fewer than the kernel's %" PRId64 " by %" PRId64,
         x.size(1), x.size(2), op.kernel_rows, op.kernel_columns);
  }
  if (desc.past) {
    if (op.kernel_frames == 1) fail(LOLRT_INVALID_ARGUMENT, "conv3d: past is given, but the kernel has one frame: pass NULL");
    op.past = input_pixels("past", check("past", desc.past, DType::float32,
                                         {{"kernel_frames - 1", op.kernel_frames - 1},
                                          {"rows", x.size(1)},
                                          {"columns", x.size(2)},
                                          {"in_channels", op.in_channels}},
                                         Layout::strided));
  }

  const auto shape = {Dim{"frames", op.frames}, Dim{"rows - kernel_rows + 1", op.rows},
                      Dim{"columns - kernel_columns + 1", op.columns}, Dim{"out_channels"}};
  const View out = check.output("out", desc.out, DType::float32, shape, Layout::strided);
  op.out = pixels(out);
  op.out_channels = out.size(3);
  if ((op.out_channels + Conv3d::block - 1) / Conv3d::block != weight.size(0)) {
    fail(LOLRT_INVALID_ARGUMENT, "conv3d: out has %" PRId64 " channels, but weight has %" PRId64 " blocks of 16", op.out_channels,
         weight.size(0));
  }
  if (desc.residual) {
    op.residual = pixels(check(
        "residual", desc.residual, DType::float32,
        {{"frames", op.frames}, {"rows", op.rows}, {"columns", op.columns}, {"out_channels", op.out_channels}}, Layout::strided));
  }
  return op;
}

}  // namespace

lolrt_status lolrt_conv3d(const lolrt_conv3d_desc *desc) {
  return guarded([&] {
    Checker("conv3d").descriptor(desc, desc ? desc->struct_size : 0, sizeof *desc);
    const Conv3d op = checked(*desc);
    kernels().conv3d(op);
  });
}
