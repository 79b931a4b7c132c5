// vmamba::_depthwise_silu_rows and its backward on CPU tensors: checks, allocation, and the tasks on PyTorch's threads.

#include "depthwise_args.h"
#include "instruction_set.h"
#include "tasks.h"
#include "tensors.h"

namespace vmamba {
namespace {

constexpr const char* kOperator = "depthwise_silu on cpu";

// Tasks of a forward: no value depends on them, and a task of few rows reads many of them twice.
constexpr i64 kForwardTasks = 32;
constexpr i64 kFewestRows = 4;

// Channels that walk together: as many as keep three rows of x and of q in the first cache, whole vectors of every
// instruction set.
i64 block_of(i64 columns) {
  constexpr i64 kRow = 1024, kWidest = 96;
  const i64 fit = kRow / columns / kDepthwiseAlign * kDepthwiseAlign;
  return fit < kDepthwiseAlign ? kDepthwiseAlign : fit < kWidest ? fit : kWidest;
}

struct Call {
  DepthwiseArgs args;
  Sizes image;
  Floats taps;

  Call(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
    STD_TORCH_CHECK(x.dim() == 4, "depthwise_silu on cpu: expected x [B, H, W, C]");
    image = {x.size(0), x.size(1), x.size(2), x.size(3)};
    args.batch = image[0];
    args.height = image[1];
    args.columns = image[2];
    args.channels = image[3];
    args.block = block_of(args.columns > 0 ? args.columns : 1);
    args.x = dense_floats(x, image, kOperator, "x");
    const float* filters = dense_floats(weight, {args.channels, 1, 3, 3}, kOperator, "weight");
    const float* biases = dense_floats(bias, {args.channels}, kOperator, "bias");
    const i64 padded = args.padded();
    taps = scratch(kDepthwiseSums * padded);
    for (i64 c = 0; c < padded; ++c) {
      const bool real = c < args.channels;
      for (i64 t = 0; t < kDepthwiseTaps; ++t) taps[t * padded + c] = real ? filters[c * kDepthwiseTaps + t] : 0.0f;
      taps[kDepthwiseTaps * padded + c] = real && biases ? biases[c] : 0.0f;
    }
    args.taps = taps.get();
  }

  bool empty() const { return args.batch * args.height * args.columns * args.channels == 0; }
  i64 work() const { return args.batch * args.height * args.columns * args.channels; }
};

void forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& y) {
  Call call(x, weight, bias);
  DepthwiseArgs& args = call.args;
  args.y = dense_floats(y, call.image, kOperator, "y");
  if (call.empty()) return;
  const i64 rows = ceil_div(args.height * args.batch, kForwardTasks);
  args.rows = rows < kFewestRows ? kFewestRows : rows;
  const DepthwiseKernels& isa = VMAMBA_KERNELS(depthwise);
  parallel(call.work(), args.batch * args.parts(), [&](i64 begin, i64 end) { isa.forward(args, begin, end); });
}

void backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
              const Tensor& dx, const Tensor& dweight, const std::optional<Tensor>& dbias) {
  Call call(x, weight, bias);
  DepthwiseArgs& args = call.args;
  args.dy = dense_floats(dy, call.image, kOperator, "dy");
  args.dx = dense_floats(dx, call.image, kOperator, "dx");
  float* filters = dense_floats(dweight, {args.channels, 1, 3, 3}, kOperator, "dweight");
  float* biases = dense_floats(dbias, {args.channels}, kOperator, "dbias");
  const i64 images = call.empty() ? 0 : args.batch, sums = kDepthwiseSums * args.channels;
  const Floats parts = scratch(images * sums), total = scratch(sums);
  args.sums = parts.get();
  if (images) {
    const DepthwiseKernels& isa = VMAMBA_KERNELS(depthwise);
    parallel(call.work(), images * args.blocks(), [&](i64 begin, i64 end) { isa.backward(args, begin, end); });
  }
  add_parts(parts.get(), images, sums, total.get());
  for (i64 c = 0; c < args.channels; ++c) {
    for (i64 t = 0; t < kDepthwiseTaps; ++t) filters[c * kDepthwiseTaps + t] = total[t * args.channels + c];
    if (biases) biases[c] = total[kDepthwiseTaps * args.channels + c];
  }
}

}  // namespace
}  // namespace vmamba

STABLE_TORCH_LIBRARY_IMPL(vmamba, CPU, m) {
  m.impl("_depthwise_silu_rows", TORCH_BOX(&vmamba::forward));
  m.impl("_depthwise_silu_rows_backward", TORCH_BOX(&vmamba::backward));
}
