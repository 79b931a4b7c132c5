// vmamba::_causal_conv1d and its backward on CUDA tensors: checks, and launches on PyTorch's current stream.

#include "conv1d_run.h"
#include "tensors.h"

namespace vmamba::cuda::conv1d {
namespace {

constexpr const char* kOperator = "causal_conv1d on cuda";

Sequence sequence(const Tensor& t, const Tensor& x, bool channel_last, const Sizes& shape, const char* name) {
  check_shape(t, shape, kOperator, name);
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type(), kOperator, ": ", name, " must be of x's type");
  STD_TORCH_CHECK(t.stride(channel_last ? 1 : 2) == 1, kOperator, ": ", name,
                  " must have the channels side by side if x has, else the time steps");
  const i64 element = bytes_of(t.scalar_type());
  Sequence s{static_cast<char*>(t.data_ptr()), t.stride(0) * element, t.stride(1) * element, t.stride(2) * element};
  s.channel_last = channel_last;
  return s;
}

// The arguments that the forward and the backward share.
struct Call {
  Conv conv;
  Type type;
  bool last;

  Call(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, i64 reverse, bool silu, bool flip)
      : type(type_of(x, kOperator, "x")) {
    STD_TORCH_CHECK(x.dim() == 3 && weight.dim() == 3,
                    "causal_conv1d on cuda: expected x [B, C, L] or [B, G*C, L] and weight [G, C, W]");
    STD_TORCH_CHECK(x.size(0) > 0 && x.size(1) > 0 && x.size(2) > 0 && weight.size(0) > 0 && weight.size(0) <= 63 &&
                        x.size(1) <= kMostBlocks && weight.size(2) > 0 && weight.size(2) <= kMostTaps,
                    "causal_conv1d on cuda: expected B, C, L >= 1, 1 <= G <= 63 and 1 <= W <= 8");
    last = is_channel_last(x);
    conv.batch = x.size(0);
    conv.length = x.size(2);
    conv.groups = int(weight.size(0));
    conv.channels = int(weight.size(1));
    conv.taps = int(weight.size(2));
    conv.reverse = std::uint64_t(reverse);
    conv.flip = flip;
    conv.silu = silu;
    conv.shared = x.size(1) == conv.channels;
    conv.x = sequence(x, x, last, {conv.batch, conv.shared ? conv.channels : outputs(), conv.length}, "x");
    conv.weight = dense_floats(weight, {conv.groups, conv.channels, conv.taps}, kOperator, "weight");
    STD_TORCH_CHECK(reinterpret_cast<std::uintptr_t>(conv.weight) % 16 == 0,
                    "causal_conv1d on cuda: the weight must start at a multiple of 16 bytes");
    conv.bias = dense_floats(bias, {conv.groups, conv.channels}, kOperator, "bias");
  }

  i64 outputs() const { return i64(conv.groups) * conv.channels; }
  Sequence result(const Tensor& t, const Tensor& x, const char* name) const {
    return sequence(t, x, last, {conv.batch, outputs(), conv.length}, name);
  }
};

template <typename Run>
void run_blocks(i64 blocks, const Run& run) {
  STD_TORCH_CHECK(blocks <= kMostBlocks, "causal_conv1d on cuda: too many elements for one call");
  guarded(run);
}

void run_forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& out,
                 i64 reverse, bool silu, bool flip) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Call call(x, weight, bias, reverse, silu, flip);
  Forward f;
  f.conv = call.conv;
  f.out = call.result(out, x, "out");
  run_blocks(forward_blocks(f.conv, int(bytes_of(x.scalar_type()))),
             [&] { forward(call.type, f, queue_of(x, kOperator)); });
}

void run_backward(const Tensor& dout, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                  const Tensor& dx, const Tensor& dweight, const Tensor& dbias, const Tensor& partial, i64 reverse,
                  bool silu, bool flip) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Call call(x, weight, bias, reverse, silu, flip);
  const Conv& p = call.conv;
  Backward b;
  b.conv = p;
  b.dout = call.result(dout, x, "dout");
  b.dx = sequence(dx, x, call.last, {p.batch, x.size(1), p.length}, "dx");
  b.partial = dense_floats(partial, {p.batch * pieces_of(p), p.groups, p.taps + 1, p.channels}, kOperator, "partial");
  Reduction r;
  r.dweight = dense_floats(dweight, {p.groups, p.channels, p.taps}, kOperator, "dweight");
  r.dbias = bias ? dense_floats(dbias, {p.groups, p.channels}, kOperator, "dbias") : nullptr;
  run_blocks(backward_blocks(p), [&] { backward(call.type, b, r, queue_of(x, kOperator)); });
}

}  // namespace
}  // namespace vmamba::cuda::conv1d

STABLE_TORCH_LIBRARY_IMPL(vmamba, CUDA, m) {
  m.impl("_causal_conv1d", TORCH_BOX(&vmamba::cuda::conv1d::run_forward));
  m.impl("_causal_conv1d_backward", TORCH_BOX(&vmamba::cuda::conv1d::run_backward));
}
