// vmamba::_causal_conv1d and its backward on CPU tensors: checks, and the tasks on PyTorch's threads.

#include "conv1d_args.h"
#include "instruction_set.h"
#include "tasks.h"
#include "tensors.h"

namespace vmamba {
namespace {

constexpr const char* kOperator = "causal_conv1d on cpu";
constexpr i64 kForwardBlock = 256;
// Channels of a backward task: few where the shape gives few tasks.
constexpr i64 kBackwardBlock = 128, kNarrowBlock = 64;

Sequence sequence(const Tensor& t, const Tensor& x, const Sizes& shape, const char* name) {
  check_shape(t, shape, kOperator, name);
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type(), kOperator, ": ", name, " must be of x's type");
  return vmamba::sequence(t, kOperator, name);
}

// The arguments that the forward and the backward share.
struct Call {
  ConvSizes sizes;
  ConvInputs in;

  Call(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, i64 reverse, bool silu, bool flip) {
    STD_TORCH_CHECK(x.dim() == 3 && weight.dim() == 3,
                    "causal_conv1d on cpu: expected x [B, C, L] or [B, G*C, L] and weight [G, C, W]");
    sizes.batch = x.size(0);
    sizes.groups = weight.size(0);
    sizes.channels = weight.size(1);
    sizes.length = x.size(2);
    sizes.taps = weight.size(2);
    sizes.reverse = static_cast<std::uint64_t>(reverse);
    sizes.silu = silu;
    sizes.flip = flip;
    sizes.shared = x.size(1) == sizes.channels;
    STD_TORCH_CHECK(sizes.batch > 0 && sizes.groups > 0 && sizes.groups <= 63 && sizes.channels > 0 &&
                        sizes.length > 0 && sizes.taps > 0 && sizes.taps <= kMostTaps,
                    "causal_conv1d on cpu: expected B, C, L >= 1, 1 <= G <= 63 and 1 <= W <= 8");
    sizes.block = kForwardBlock;
    sizes.tile = kConvTile;
    in.x = sequence(x, x, {sizes.batch, sizes.shared ? sizes.channels : outputs(), sizes.length}, "x");
    in.weight = dense_floats(weight, {sizes.groups, sizes.channels, sizes.taps}, kOperator, "weight");
    in.bias = dense_floats(bias, {sizes.groups, sizes.channels}, kOperator, "bias");
  }

  i64 outputs() const { return sizes.groups * sizes.channels; }

  // A multiply-add of the convolution is half of one of a scan.
  i64 work() const { return sizes.batch * outputs() * sizes.length * sizes.taps / 2; }
};

void forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& out, i64 reverse,
             bool silu, bool flip) {
  const Call call(x, weight, bias, reverse, silu, flip);
  ConvForwardArgs args;
  args.sizes = call.sizes;
  args.in = call.in;
  args.out = sequence(out, x, {call.sizes.batch, call.outputs(), call.sizes.length}, "out");
  const ConvKernels& isa = VMAMBA_KERNELS(conv1d);
  parallel(call.work(), args.sizes.forward_tasks(), [&](i64 begin, i64 end) { isa.forward(args, begin, end); });
}

// dweight and dbias from those of each batch group, in the order of the groups.
void add_groups(const ConvSizes& s, const float* partial, float* dweight, float* dbias) {
  const i64 rows = s.groups * (s.taps + 1);
  std::vector<float> sum(s.channels);
  for (i64 row = 0; row < rows; ++row) {
    sum.assign(sum.size(), 0.0f);
    for (i64 part = 0; part < s.batch_groups; ++part)
      for (i64 c = 0; c < s.channels; ++c) sum[c] += partial[(part * rows + row) * s.channels + c];
    const i64 g = row / (s.taps + 1), j = row % (s.taps + 1);
    for (i64 c = 0; c < s.channels; ++c) {
      if (j < s.taps)
        dweight[(g * s.channels + c) * s.taps + j] = sum[c];
      else if (dbias != nullptr)
        dbias[g * s.channels + c] = sum[c];
    }
  }
}

void backward(const Tensor& dout, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
              const Tensor& dx, const Tensor& dweight, const Tensor& dbias, const Tensor& partial, i64 reverse,
              bool silu, bool flip) {
  Call call(x, weight, bias, reverse, silu, flip);
  ConvSizes& s = call.sizes;
  s.block = s.batch * ceil_div(s.channels, kBackwardBlock) >= kTasks ? kBackwardBlock : kNarrowBlock;
  s.batch_groups = partial.size(0);
  STD_TORCH_CHECK(0 < s.batch_groups && s.batch_groups <= s.batch,
                  "causal_conv1d on cpu: expected 1 <= P <= B in partial [P, G, W+1, C]");
  ConvBackwardArgs args;
  args.sizes = s;
  args.in = call.in;
  args.dout = sequence(dout, x, {s.batch, call.outputs(), s.length}, "dout");
  args.dx = sequence(dx, x, {s.batch, x.size(1), s.length}, "dx");
  args.partial = dense_floats(partial, {s.batch_groups, s.groups, s.taps + 1, s.channels}, kOperator, "partial");
  float* dweight_data = dense_floats(dweight, {s.groups, s.channels, s.taps}, kOperator, "dweight");
  float* dbias_data = bias ? dense_floats(dbias, {s.groups, s.channels}, kOperator, "dbias") : nullptr;
  const ConvKernels& isa = VMAMBA_KERNELS(conv1d);
  parallel(call.work(), s.backward_tasks(), [&](i64 begin, i64 end) { isa.backward(args, begin, end); });
  add_groups(s, args.partial, dweight_data, dbias_data);
}

}  // namespace
}  // namespace vmamba

STABLE_TORCH_LIBRARY_IMPL(vmamba, CPU, m) {
  m.impl("_causal_conv1d", TORCH_BOX(&vmamba::forward));
  m.impl("_causal_conv1d_backward", TORCH_BOX(&vmamba::backward));
}
