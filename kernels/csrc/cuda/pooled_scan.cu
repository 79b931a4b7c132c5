// vmamba::_pooled_scan and its backward on CUDA tensors: checks, allocation, launches on PyTorch's current stream.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <exception>
#include <optional>
#include <tuple>
#include <vector>

#include "pooled_run.h"

namespace vmamba::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<i64>;

constexpr i64 kMost = 2147483647;

Tensor allocate(const Tensor& like, const Sizes& sizes, const Sizes& strides, ScalarType type) {
  std::int32_t device = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  const auto dtype = torch::stable::detail::to<std::int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<i64>(sizes.size()), sizes.data(), strides.data(), dtype,
                                                  device, like.get_device_index(), &handle));
  return Tensor(handle);
}

Tensor allocate(const Tensor& like, const Sizes& sizes, ScalarType type = ScalarType::Float) {
  Sizes strides(sizes.size(), 1);
  for (std::size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * (sizes[i] > 1 ? sizes[i] : 1);
  return allocate(like, sizes, strides, type);
}

// Dense [B, channels, length], channel-last or not.
Tensor allocate_sequence(const Tensor& like, i64 channels, i64 length, bool channel_last, ScalarType type) {
  const i64 batch = like.size(0);
  if (channel_last) return allocate(like, {batch, channels, length}, {length * channels, 1, channels}, type);
  return allocate(like, {batch, channels, length}, type);
}

// Dense [B, K, N, P], time-last if `like` is.
Tensor allocate_projection(const Tensor& like) {
  const i64 batch = like.size(0), groups = like.size(1), states = like.size(2), length = like.size(3);
  if (like.stride(3) == 1) return allocate(like, {batch, groups, states, length}, like.scalar_type());
  return allocate(like, {batch, groups, states, length}, {length * groups * states, states, 1, groups * states},
                  like.scalar_type());
}

Type type_of(const Tensor& t) {
  if (t.scalar_type() == ScalarType::Float) return Type::f32;
  if (t.scalar_type() == ScalarType::BFloat16) return Type::bf16;
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Half,
                  "pooled_scan on cuda: u_full must be float32, bfloat16 or float16");
  return Type::f16;
}

void check_shape(const Tensor& t, const Sizes& expected, const char* name) {
  bool same = t.dim() == static_cast<i64>(expected.size());
  for (i64 i = 0; same && i < t.dim(); ++i) same = t.size(i) == expected[i];
  STD_TORCH_CHECK(same, "pooled_scan on cuda: the shape of ", name, " does not fit that of u_full");
}

Tensor dense(const Tensor& t, const Sizes& expected, const char* name) {
  check_shape(t, expected, name);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, "pooled_scan on cuda: ", name, " must be float32");
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

const float* floats(const Tensor& t) { return static_cast<const float*>(t.data_ptr()); }
float* room(const Tensor& t) { return t.numel() > 0 ? static_cast<float*>(t.data_ptr()) : nullptr; }

// A [B, K*D, P] with the channels side by side.
Sequence sequence(const Tensor& t) {
  STD_TORCH_CHECK(t.stride(1) == 1 || t.size(1) == 1, "pooled_scan on cuda: the channels of pooled tensors must be dense");
  const i64 element = element_of(type_of(t));
  return Sequence{static_cast<char*>(t.data_ptr()), t.stride(0) * element, element, t.stride(2) * element, 0, true};
}

Projection projection(const Tensor& t) {
  const i64 element = element_of(type_of(t));
  return {static_cast<const char*>(t.data_ptr()), t.stride(0) * element, t.stride(1) * element, t.stride(2) * element,
          t.stride(3) * element};
}

// A [B, K, D, L] or, without an axis of groups, [B, K*D, L].
Image image(const Pooled& p, const Tensor& t) {
  const i64 element = element_of(type_of(t));
  const int channel = t.dim() == 4 ? 2 : 1;
  Image x;
  x.data = static_cast<char*>(t.data_ptr());
  x.batch = t.stride(0) * element;
  x.channel = t.stride(channel) * element;
  x.group = t.dim() == 4 ? t.stride(1) * element : p.channels * x.channel;
  x.token = t.stride(channel + 1) * element;
  x.piece = image_piece(p, x);
  return x;
}

Queue queue_of(const Tensor& t) {
  Queue queue;
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  queue.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t status =
      cudaDeviceGetAttribute(&queue.processors, cudaDevAttrMultiProcessorCount, t.get_device_index());
  STD_TORCH_CHECK(status == cudaSuccess, "pooled_scan on cuda: ", cudaGetErrorString(status));
  return queue;
}

// The arguments that the forward and the backward share; holds the weights that had to be made contiguous.
struct Call {
  Pooled pooled;
  PooledInputs in;
  Queue queue;
  Tensor A;
  std::optional<Tensor> D, delta_bias;

  Call(const Tensor& u_full, const Tensor& u, const Tensor& delta, const Tensor& A_in, const Tensor& B, const Tensor& C,
       const std::optional<Tensor>& D_in, const std::optional<Tensor>& bias_in, i64 outer, i64 pool1, i64 inner,
       i64 pool2, i64 reverse, bool softplus, bool average, i64 chunk)
      : queue(queue_of(u_full)), A(A_in) {
    STD_TORCH_CHECK(u_full.dim() == 4 && u.dim() == 3 && delta.dim() == 3 && A_in.dim() == 2 && chunk == kChunk,
                    "pooled_scan on cuda: expected u_full [B, K, D, L], u_pooled, delta [B, K*D, P], A [K*D, N]");
    const i64 batch = u_full.size(0), K = u_full.size(1), width = u_full.size(2), steps = outer * inner;
    const i64 channels = K * width, states = A_in.size(1), delta_channels = delta.size(1);
    const i64 tokens = steps * pool1 * pool2;
    STD_TORCH_CHECK(outer > 0 && pool1 > 0 && inner > 0 && pool2 > 0 && K > 0 && K <= 32 && width > 0 && states > 0 &&
                        states <= 256 && delta_channels > 0 && channels % delta_channels == 0 &&
                        delta_channels % K == 0 && (!average || K <= 2),
                    "pooled_scan on cuda: expected P, D >= 1, 1 <= K <= 32, 1 <= N <= 256 and delta channels that fit");
    check_shape(u_full, {batch, K, width, tokens}, "u_full");
    check_shape(u, {batch, channels, steps}, "u_pooled");
    check_shape(delta, {batch, delta_channels, steps}, "delta");
    check_shape(B, {batch, K, states, steps}, "B");
    check_shape(C, {batch, K, states, steps}, "C");
    for (const Tensor* t : {&u, &delta, &B, &C})
      STD_TORCH_CHECK(t->scalar_type() == u_full.scalar_type(),
                      "pooled_scan on cuda: u_pooled, delta, B and C must be of u_full's type");
    STD_TORCH_CHECK(tokens <= kMost && channels <= kMost && 2 * batch * states <= kMost && batch <= 65535 &&
                        batch * channels * (tokens / 4 + 1) / kPooledThreads <= kMost,
                    "pooled_scan on cuda: too many images or tokens for one call");
    A = dense(A_in, {channels, states}, "A");
    if (D_in) D = dense(*D_in, {channels}, "D");
    if (bias_in) delta_bias = dense(*bias_in, {delta_channels}, "delta_bias");

    pooled.batch = batch;
    pooled.tokens = int(tokens), pooled.steps = int(steps);
    pooled.inner = int(inner), pooled.pool1 = int(pool1), pooled.pool2 = int(pool2);
    pooled.groups = int(K), pooled.added = average ? int(K) : 1, pooled.channels = int(width);
    pooled.channel_last = u_full.stride(2) == 1 && u_full.stride(3) != 1;
    STD_TORCH_CHECK(pooled.channel_last || u_full.stride(3) == 1 || tokens == 1,
                    "pooled_scan on cuda: u_full must have its channels or its tokens side by side");

    in.type = type_of(u_full);
    in.reverse = unsigned(reverse);
    Scan& s = in.scan;
    s.batch = batch, s.length = steps, s.groups = int(K), s.group_channels = int(width), s.states = int(states);
    s.delta_ratio = int(channels / delta_channels);
    s.softplus = softplus;
    s.u = sequence(u);
    s.delta = sequence(delta);
    s.B = projection(B);
    s.C = projection(C);
    s.A = floats(A);
    s.delta_bias = delta_bias ? floats(*delta_bias) : nullptr;
  }
};

// Errors of CUDA as PyTorch's.
template <typename Run>
void guarded(const Run& run) {
  try {
    run();
  } catch (const std::exception& error) {
    STD_TORCH_CHECK(false, error.what());
  }
}

std::tuple<Tensor, Tensor> run_forward(const Tensor& u_full, const Tensor& u_pooled, const Tensor& delta,
                                       const Tensor& A, const Tensor& B, const Tensor& C, const std::optional<Tensor>& D,
                                       const std::optional<Tensor>& delta_bias, i64 outer, i64 pool1, i64 inner,
                                       i64 pool2, i64 reverse, bool delta_softplus, bool average, i64 chunk,
                                       ScalarType out_dtype, bool save_states) {
  const torch::stable::accelerator::DeviceGuard guard(u_full.get_device_index());
  const Call call(u_full, u_pooled, delta, A, B, C, D, delta_bias, outer, pool1, inner, pool2, reverse, delta_softplus,
                  average, chunk);
  const Pooled& p = call.pooled;
  const Scan& s = call.in.scan;
  STD_TORCH_CHECK(out_dtype == ScalarType::Float || out_dtype == u_full.scalar_type(),
                  "pooled_scan on cuda: the output must be float32 or of u_full's type");
  Tensor y = allocate_sequence(u_full, p.all_channels() / p.added, p.tokens, p.channel_last, out_dtype);
  Tensor states = allocate(u_full, {p.groups, p.batch, save_states ? kept_states(s) : 0, s.states, p.channels});
  if (p.batch == 0) return {y, states};
  const Tensor z = allocate(u_full, {p.batch, p.steps, p.all_channels()});
  Expand e;
  e.pooled = p;
  e.u = image(p, u_full);
  e.z = floats(z);
  if (call.D) e.D = floats(*call.D), e.D_piece = weights_piece(p, e.D);
  e.y = image(p, y);
  guarded([&] {
    const Tensor scratch = allocate(u_full, {pooled_forward_floats(call.in, call.queue)});
    scan_groups(call.in, room(z), save_states ? room(states) : nullptr, room(scratch), call.queue);
    expand(call.in.type, out_dtype == ScalarType::Float, e, call.queue);
  });
  return {y, states};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> run_backward(
    const Tensor& dy, const Tensor& u_full, const Tensor& u_pooled, const Tensor& delta, const Tensor& A,
    const Tensor& B, const Tensor& C, const std::optional<Tensor>& D, const std::optional<Tensor>& delta_bias,
    const Tensor& states_in, i64 outer, i64 pool1, i64 inner, i64 pool2, i64 reverse, bool delta_softplus, bool average,
    i64 chunk) {
  const torch::stable::accelerator::DeviceGuard guard(u_full.get_device_index());
  const Call call(u_full, u_pooled, delta, A, B, C, D, delta_bias, outer, pool1, inner, pool2, reverse, delta_softplus,
                  average, chunk);
  const Pooled& p = call.pooled;
  const Scan& s = call.in.scan;
  const i64 channels = p.all_channels(), width = channels / p.added;
  check_shape(dy, {p.batch, width, p.tokens}, "dy");
  STD_TORCH_CHECK(dy.scalar_type() == ScalarType::Float || dy.scalar_type() == u_full.scalar_type(),
                  "pooled_scan on cuda: dy must be float32 or of u_full's type");
  STD_TORCH_CHECK(p.channel_last ? dy.stride(1) == 1 || width == 1 : dy.stride(2) == 1 || p.tokens == 1,
                  "pooled_scan on cuda: dy must lie as u_full does");
  const Tensor states = dense(states_in, {p.groups, p.batch, kept_states(s), s.states, p.channels}, "states");
  const i64 L = p.tokens, Dw = p.channels;
  Tensor du_full = !D ? allocate(u_full, {0}, u_full.scalar_type())
                   : p.channel_last
                       ? allocate(u_full, {p.batch, p.groups, Dw, L}, {L * channels, Dw, 1, channels},
                                  u_full.scalar_type())
                       : allocate(u_full, {p.batch, p.groups, Dw, L}, u_full.scalar_type());
  Tensor du = allocate_sequence(u_pooled, channels, p.steps, true, u_pooled.scalar_type());
  Tensor ddelta = allocate_sequence(delta, delta.size(1), p.steps, true, delta.scalar_type());
  Tensor dA = allocate(u_full, {channels, s.states});
  Tensor dB = allocate_projection(B), dC = allocate_projection(C);
  Tensor dD = allocate(u_full, {D ? channels : 0});
  Tensor dbias = allocate(u_full, {delta_bias ? delta.size(1) : 0});
  if (p.batch == 0) {
    for (Tensor* t : {&dA, &dD, &dbias}) torch::stable::zero_(*t);
    return {du_full, du, ddelta, dA, dB, dC, dD, dbias};
  }
  const Tensor dz = allocate(u_full, {p.batch, p.steps, width});
  const Tensor dD_parts = allocate(u_full, {D ? skip_rows(call.in.type, p, call.queue) * channels : 0});
  Gather g;
  g.pooled = p;
  g.dy = image(p, dy);
  g.u = image(p, u_full);
  if (call.D) {
    g.D = floats(*call.D), g.D_piece = weights_piece(p, g.D);
    g.du = image(p, du_full);
  }
  g.dz = room(dz);
  g.dD = room(dD_parts);
  PooledGradients to;
  to.dz = floats(dz);
  to.dz_shared = average;
  to.states = floats(states);
  to.du = sequence(du);
  to.ddelta = sequence(ddelta);
  to.dB = projection(dB);
  to.dC = projection(dC);
  to.dA = room(dA);
  to.ddelta_bias = room(dbias);
  guarded([&] {
    gather(call.in.type, dy.scalar_type() == ScalarType::Float, g, room(dD), call.queue);
    const Tensor scratch = allocate(u_full, {pooled_backward_floats(call.in, call.queue)});
    scan_groups_backward(call.in, to, room(scratch), call.queue);
  });
  return {du_full, du, ddelta, dA, dB, dC, dD, dbias};
}

}  // namespace
}  // namespace vmamba::cuda

STABLE_TORCH_LIBRARY_IMPL(vmamba, CUDA, m) {
  m.impl("_pooled_scan", TORCH_BOX(&vmamba::cuda::run_forward));
  m.impl("_pooled_scan_backward", TORCH_BOX(&vmamba::cuda::run_backward));
}
