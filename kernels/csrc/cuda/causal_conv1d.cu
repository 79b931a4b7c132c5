// vmamba::_causal_conv1d and its backward on CUDA tensors: checks, and launches on PyTorch's current stream.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <exception>
#include <optional>
#include <vector>

#include "conv1d_run.h"

namespace vmamba::cuda::conv1d {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<i64>;

void check_shape(const Tensor& t, const Sizes& expected, const char* name) {
  bool same = t.dim() == i64(expected.size());
  for (i64 i = 0; same && i < t.dim(); ++i) same = t.size(i) == expected[i];
  STD_TORCH_CHECK(same, "causal_conv1d on cuda: the shape of ", name, " does not fit that of x and weight");
}

Type type_of(const Tensor& t) {
  if (t.scalar_type() == ScalarType::Float) return Type::f32;
  if (t.scalar_type() == ScalarType::BFloat16) return Type::bf16;
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Half, "causal_conv1d on cuda: x must be float32, bfloat16 or float16");
  return Type::f16;
}

bool is_channel_last(const Tensor& t) { return t.stride(1) == 1 && t.stride(2) != 1; }

Sequence sequence(const Tensor& t, const Tensor& x, bool channel_last, const Sizes& shape, const char* name) {
  check_shape(t, shape, name);
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type(), "causal_conv1d on cuda: ", name, " must be of x's type");
  STD_TORCH_CHECK(t.stride(channel_last ? 1 : 2) == 1, "causal_conv1d on cuda: ", name,
                  " must have the channels side by side if x has, else the time steps");
  const i64 element = t.scalar_type() == ScalarType::Float ? 4 : 2;
  Sequence s{static_cast<char*>(t.data_ptr()), t.stride(0) * element, t.stride(1) * element, t.stride(2) * element};
  s.channel_last = channel_last;
  return s;
}

float* dense(const Tensor& t, const Sizes& shape, const char* name) {
  check_shape(t, shape, name);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.is_contiguous(), "causal_conv1d on cuda: ", name,
                  " must be float32 and contiguous");
  return static_cast<float*>(t.data_ptr());
}

Queue queue_of(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return {static_cast<cudaStream_t>(stream)};
}

// The arguments that the forward and the backward share.
struct Call {
  Conv conv;
  Type type;
  bool last;

  Call(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, i64 reverse, bool silu, bool flip)
      : type(type_of(x)) {
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
    conv.weight = dense(weight, {conv.groups, conv.channels, conv.taps}, "weight");
    STD_TORCH_CHECK(reinterpret_cast<std::uintptr_t>(conv.weight) % 16 == 0,
                    "causal_conv1d on cuda: the weight must start at a multiple of 16 bytes");
    if (bias) conv.bias = dense(*bias, {conv.groups, conv.channels}, "bias");
  }

  i64 outputs() const { return i64(conv.groups) * conv.channels; }
  Sequence result(const Tensor& t, const Tensor& x, const char* name) const {
    return sequence(t, x, last, {conv.batch, outputs(), conv.length}, name);
  }
};

// Errors of CUDA as PyTorch's.
template <typename Run>
void guarded(i64 blocks, const Run& run) {
  STD_TORCH_CHECK(blocks <= kMostBlocks, "causal_conv1d on cuda: too many elements for one call");
  try {
    run();
  } catch (const std::exception& error) {
    STD_TORCH_CHECK(false, error.what());
  }
}

void run_forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& out,
                 i64 reverse, bool silu, bool flip) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Call call(x, weight, bias, reverse, silu, flip);
  Forward f;
  f.conv = call.conv;
  f.out = call.result(out, x, "out");
  guarded(forward_blocks(f.conv, call.type == Type::f32 ? 4 : 2), [&] { forward(call.type, f, queue_of(x)); });
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
  b.partial = dense(partial, {p.batch * pieces_of(p), p.groups, p.taps + 1, p.channels}, "partial");
  Reduction r;
  r.dweight = dense(dweight, {p.groups, p.channels, p.taps}, "dweight");
  r.dbias = bias ? dense(dbias, {p.groups, p.channels}, "dbias") : nullptr;
  guarded(backward_blocks(p), [&] { backward(call.type, b, r, queue_of(x)); });
}

}  // namespace
}  // namespace vmamba::cuda::conv1d

STABLE_TORCH_LIBRARY_IMPL(vmamba, CUDA, m) {
  m.impl("_causal_conv1d", TORCH_BOX(&vmamba::cuda::conv1d::run_forward));
  m.impl("_causal_conv1d_backward", TORCH_BOX(&vmamba::cuda::conv1d::run_backward));
}
