// vmamba::selective_scan and its backward on CUDA tensors: checks, allocation, launches on PyTorch's current stream.

#include "scan_entry_definitions.h"
#include "tensors.h"

namespace vmamba::cuda {
namespace {

constexpr const char* kOperator = "selective_scan on cuda";

// A tensor whose channels or time steps lie side by side: itself, or a copy.
Tensor side_by_side(const Tensor& t) {
  const bool fits = t.stride(2) == 1 || t.stride(1) == 1 || t.is_contiguous();
  return fits ? t : torch::stable::contiguous(t);
}

Sequence sequence(const Scan& p, const Tensor& t, bool shared_delta = false) {
  const i64 element = bytes_of(t.scalar_type());
  Sequence s{static_cast<char*>(t.data_ptr()), t.stride(0) * element, t.stride(1) * element, t.stride(2) * element};
  s.channel_last = is_channel_last(t);
  if (!s.channel_last) s.time = element;
  s.piece = piece_of(p, s, t.size(1), int(element), shared_delta);
  return s;
}

Projection projection(const Tensor& t) {
  const i64 element = bytes_of(t.scalar_type());
  return {static_cast<const char*>(t.data_ptr()), t.stride(0) * element, t.stride(1) * element, t.stride(2) * element,
          t.stride(3) * element};
}

// The arguments that the forward and the backward share; holds those that had to be copied.
struct Call {
  Scan scan;
  Queue queue;
  Type type;
  Tensor u, delta, A;
  std::optional<Tensor> D, delta_bias;

  Call(const Tensor& u_in, const Tensor& delta_in, const Tensor& A_in, const Tensor& B, const Tensor& C,
       const std::optional<Tensor>& D_in, const std::optional<Tensor>& bias_in, bool softplus)
      : queue(queue_of(u_in, kOperator)),
        type(type_of(u_in, kOperator, "u")),
        u(u_in),
        delta(delta_in),
        A(A_in) {
    STD_TORCH_CHECK(u.dim() == 3 && delta.dim() == 3 && A.dim() == 2 && B.dim() == 4,
                    "selective_scan on cuda: expected u, delta [B, K*D, L], A [K*D, N], B, C [B, K, N, L]");
    const i64 batch = u.size(0), channels = u.size(1), length = u.size(2), groups = B.size(1), states = A.size(1);
    const i64 delta_channels = delta.size(1);
    STD_TORCH_CHECK(length > 0 && channels > 0 && channels < kMostBlocks && groups > 0 && channels % groups == 0 &&
                        delta_channels > 0 && channels % delta_channels == 0 && states > 0 && states <= 256,
                    "selective_scan on cuda: expected L >= 1, 1 <= N <= 256, and groups and delta channels dividing u's");
    check_shape(delta, {batch, delta_channels, length}, kOperator, "delta");
    A = dense(A_in, {channels, states}, kOperator, "A");
    check_shape(B, {batch, groups, states, length}, kOperator, "B");
    check_shape(C, {batch, groups, states, length}, kOperator, "C");
    for (const Tensor* t : {&delta_in, &B, &C})
      STD_TORCH_CHECK(t->scalar_type() == u.scalar_type(), "selective_scan on cuda: delta, B and C must be of u's type");
    u = side_by_side(u);
    delta = side_by_side(delta);
    scan.batch = batch;
    scan.length = length;
    scan.groups = int(groups);
    scan.group_channels = int(channels / groups);
    scan.states = int(states);
    scan.delta_ratio = int(channels / delta_channels);
    scan.softplus = softplus;
    scan.atomics = atomics_wanted();
    plan(scan, queue.processors);
    STD_TORCH_CHECK(scan.units() <= kMostBlocks && 2 * batch * groups * states <= kMostBlocks &&
                        batch * join_blocks(scan) <= kMostBlocks,
                    "selective_scan on cuda: too many batches or groups for one call");
    scan.u = sequence(scan, u);
    scan.delta = sequence(scan, delta, scan.delta_ratio > 1);
    scan.B = projection(B);
    scan.C = projection(C);
    scan.A = floats(A);
    D = dense(D_in, {channels}, kOperator, "D");
    delta_bias = dense(bias_in, {delta_channels}, kOperator, "delta_bias");
    scan.D = floats(D);
    scan.delta_bias = floats(delta_bias);
  }

  i64 kept() const { return ceil_div(scan.length, kChunk) - 1; }
};

std::tuple<Tensor, Tensor, Tensor> run_forward(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                               const Tensor& C, const std::optional<Tensor>& D,
                                               const std::optional<Tensor>& delta_bias, bool delta_softplus,
                                               ScalarType out_dtype, bool save_states) {
  const torch::stable::accelerator::DeviceGuard guard(u.get_device_index());
  const Call call(u, delta, A, B, C, D, delta_bias, delta_softplus);
  const Scan& p = call.scan;
  const i64 channels = p.channels();
  Tensor out = allocate_sequence(u, out_dtype);
  Tensor last_state = allocate(u, {p.batch, channels, p.states});
  Tensor states = allocate(u, {p.batch, save_states ? call.kept() : 0, p.states, channels});
  if (p.batch == 0) return {out, last_state, states};
  Forward f;
  f.scan = p;
  f.out = sequence(p, out);
  f.out_f32 = out_dtype == ScalarType::Float;
  f.last_state = room(last_state);
  f.stored = states.size(1);
  f.stored_states = room(states);
  const Tensor scratch = allocate(u, {forward_floats(p)});
  guarded([&] { forward(call.type, f, room(scratch), call.queue); });
  return {out, last_state, states};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> run_backward(
    const Tensor& dout_in, const std::optional<Tensor>& dlast_in, const Tensor& u, const Tensor& delta, const Tensor& A,
    const Tensor& B, const Tensor& C, const std::optional<Tensor>& D, const std::optional<Tensor>& delta_bias,
    const Tensor& states_in, bool delta_softplus) {
  const torch::stable::accelerator::DeviceGuard guard(u.get_device_index());
  const Call call(u, delta, A, B, C, D, delta_bias, delta_softplus);
  const Scan& p = call.scan;
  const i64 channels = p.channels();
  check_shape(dout_in, {p.batch, channels, p.length}, kOperator, "dout");
  STD_TORCH_CHECK(dout_in.scalar_type() == ScalarType::Float || dout_in.scalar_type() == u.scalar_type(),
                  "selective_scan on cuda: dout must be float32 or of u's type");
  const Tensor dout = side_by_side(dout_in);
  const Tensor states = dense(states_in, {p.batch, call.kept(), p.states, channels}, kOperator, "states");
  const std::optional<Tensor> dlast = dense(dlast_in, {p.batch, channels, p.states}, kOperator, "dlast_state");
  Tensor du = allocate_sequence(u, u.scalar_type());
  Tensor ddelta = allocate_sequence(delta, delta.scalar_type());
  Tensor dA = allocate(u, {channels, p.states});
  Tensor dB = allocate_projection(B), dC = allocate_projection(C);
  Tensor dD = allocate(u, {D ? channels : 0});
  Tensor dbias = allocate(u, {delta_bias ? delta.size(1) : 0});
  if (p.batch == 0) {
    for (Tensor* t : {&dA, &dD, &dbias}) torch::stable::zero_(*t);
    return {du, ddelta, dA, dB, dC, dD, dbias};
  }
  Backward b;
  b.scan = p;
  b.dout = sequence(p, dout);
  b.dout_f32 = dout.scalar_type() == ScalarType::Float;
  b.stored = call.kept();
  b.stored_states = floats(states);
  b.dlast_state = floats(dlast);
  b.du = sequence(p, du);
  b.ddelta = sequence(p, ddelta, p.delta_ratio > 1);
  Reduction r;
  r.ddelta = b.ddelta;
  r.dB = projection(dB);
  r.dC = projection(dC);
  r.dA = room(dA);
  r.dD = room(dD);
  r.ddelta_bias = room(dbias);
  const Tensor scratch = allocate(u, {backward_floats(p)});
  guarded([&] { backward(call.type, b, r, room(scratch), call.queue); });
  return {du, ddelta, dA, dB, dC, dD, dbias};
}

}  // namespace
}  // namespace vmamba::cuda

STABLE_TORCH_LIBRARY_IMPL(vmamba, CUDA, m) {
  m.impl("selective_scan", TORCH_BOX(&vmamba::cuda::run_forward));
  m.impl("selective_scan_backward", TORCH_BOX(&vmamba::cuda::run_backward));
}
