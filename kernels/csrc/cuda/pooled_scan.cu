// vmamba::_pooled_scan and its backward on CUDA tensors: checks, allocation, launches on PyTorch's current stream.

#include "pooled_run.h"
#include "tensors.h"

namespace vmamba::cuda {
namespace {

constexpr const char* kOperator = "pooled_scan on cuda";

// A [B, K*D, P] with the channels side by side.
Sequence sequence(const Tensor& t) {
  STD_TORCH_CHECK(t.stride(1) == 1 || t.size(1) == 1, "pooled_scan on cuda: the channels of pooled tensors must be dense");
  const i64 element = bytes_of(t.scalar_type());
  return Sequence{static_cast<char*>(t.data_ptr()), t.stride(0) * element, element, t.stride(2) * element, 0, true};
}

Projection projection(const Tensor& t) {
  const i64 element = bytes_of(t.scalar_type());
  return {static_cast<const char*>(t.data_ptr()), t.stride(0) * element, t.stride(1) * element, t.stride(2) * element,
          t.stride(3) * element};
}

// A [B, K, D, L] or, without an axis of groups, [B, K*D, L].
Tokens image(const Pooled& p, const Tensor& t) {
  const i64 element = bytes_of(t.scalar_type());
  const int channel = t.dim() == 4 ? 2 : 1;
  Tokens x;
  x.data = static_cast<char*>(t.data_ptr());
  x.batch = t.stride(0) * element;
  x.channel = t.stride(channel) * element;
  x.group = t.dim() == 4 ? t.stride(1) * element : p.channels * x.channel;
  x.token = t.stride(channel + 1) * element;
  x.piece = image_piece(p, x);
  return x;
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
      : queue(queue_of(u_full, kOperator)), A(A_in) {
    STD_TORCH_CHECK(u_full.dim() == 4 && u.dim() == 3 && delta.dim() == 3 && A_in.dim() == 2 && chunk == kChunk,
                    "pooled_scan on cuda: expected u_full [B, K, D, L], u_pooled, delta [B, K*D, P], A [K*D, N]");
    const i64 batch = u_full.size(0), K = u_full.size(1), width = u_full.size(2), steps = outer * inner;
    const i64 channels = K * width, states = A_in.size(1), delta_channels = delta.size(1);
    const i64 tokens = steps * pool1 * pool2;
    STD_TORCH_CHECK(outer > 0 && pool1 > 0 && inner > 0 && pool2 > 0 && K > 0 && K <= 32 && width > 0 && states > 0 &&
                        states <= 256 && delta_channels > 0 && channels % delta_channels == 0 &&
                        delta_channels % K == 0 && (!average || K <= 2),
                    "pooled_scan on cuda: expected P, D >= 1, 1 <= K <= 32, 1 <= N <= 256 and delta channels that fit");
    check_shape(u_full, {batch, K, width, tokens}, kOperator, "u_full");
    check_shape(u, {batch, channels, steps}, kOperator, "u_pooled");
    check_shape(delta, {batch, delta_channels, steps}, kOperator, "delta");
    check_shape(B, {batch, K, states, steps}, kOperator, "B");
    check_shape(C, {batch, K, states, steps}, kOperator, "C");
    for (const Tensor* t : {&u, &delta, &B, &C})
      STD_TORCH_CHECK(t->scalar_type() == u_full.scalar_type(),
                      "pooled_scan on cuda: u_pooled, delta, B and C must be of u_full's type");
    STD_TORCH_CHECK(tokens <= kMostBlocks && channels <= kMostBlocks && 2 * batch * states <= kMostBlocks &&
                        batch * ceil_div(channels * states, kMostThreads) <= kMostBlocks &&
                        batch * channels * (tokens / 4 + 1) / kPooledThreads <= kMostBlocks,
                    "pooled_scan on cuda: too many images or tokens for one call");
    A = dense(A_in, {channels, states}, kOperator, "A");
    D = dense(D_in, {channels}, kOperator, "D");
    delta_bias = dense(bias_in, {delta_channels}, kOperator, "delta_bias");

    pooled.batch = batch;
    pooled.tokens = int(tokens), pooled.steps = int(steps);
    pooled.inner = int(inner), pooled.pool1 = int(pool1), pooled.pool2 = int(pool2);
    pooled.groups = int(K), pooled.added = average ? int(K) : 1, pooled.channels = int(width);
    pooled.channel_last = u_full.stride(2) == 1 && u_full.stride(3) != 1;
    STD_TORCH_CHECK(pooled.channel_last || u_full.stride(3) == 1 || tokens == 1,
                    "pooled_scan on cuda: u_full must have its channels or its tokens side by side");

    in.type = type_of(u_full, kOperator, "u_full");
    in.reverse = unsigned(reverse);
    Scan& s = in.scan;
    s.batch = batch, s.length = steps, s.groups = int(K), s.group_channels = int(width), s.states = int(states);
    s.delta_ratio = int(channels / delta_channels);
    s.softplus = softplus;
    s.atomics = atomics_wanted();
    s.u = sequence(u);
    s.delta = sequence(delta);
    s.B = projection(B);
    s.C = projection(C);
    s.A = floats(A);
    s.delta_bias = floats(delta_bias);
  }
};

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
  check_shape(dy, {p.batch, width, p.tokens}, kOperator, "dy");
  STD_TORCH_CHECK(dy.scalar_type() == ScalarType::Float || dy.scalar_type() == u_full.scalar_type(),
                  "pooled_scan on cuda: dy must be float32 or of u_full's type");
  STD_TORCH_CHECK(p.channel_last ? dy.stride(1) == 1 || width == 1 : dy.stride(2) == 1 || p.tokens == 1,
                  "pooled_scan on cuda: dy must lie as u_full does");
  const Tensor states = dense(states_in, {p.groups, p.batch, kept_states(s), s.states, p.channels}, kOperator, "states");
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
