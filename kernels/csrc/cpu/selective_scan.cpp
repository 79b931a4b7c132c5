// vmamba::selective_scan and its backward on CPU tensors: checks, allocation, and the tasks on PyTorch's threads.

#include "instruction_set.h"
#include "tasks.h"
#include "tensors.h"

namespace vmamba {
namespace {

constexpr const char* kOperator = "selective_scan on cpu";

Projection projection(const Tensor& t, const char* name) {
  return {t.data_ptr(), type_of(t, kOperator, name), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// How the channels of a group are cut into tasks. It depends on the shape alone, never on the number of threads,
// so that sums are the same whatever that number is.
i64 block_channels(i64 batch, i64 groups, i64 group_channels) {
  for (const i64 block : {i64{96}, i64{48}})
    if (batch * groups * ((group_channels + block - 1) / block) >= 16) return block;
  return 48;
}

// The arguments that the forward and the backward share; holds the weights that had to be made contiguous.
struct Call {
  ScanSizes sizes;
  ScanInputs in;
  Tensor A;
  std::optional<Tensor> D, delta_bias;

  Call(const Tensor& u, const Tensor& delta, const Tensor& A_in, const Tensor& B, const Tensor& C,
       const std::optional<Tensor>& D_in, const std::optional<Tensor>& bias_in, bool softplus)
      : A(A_in) {
    STD_TORCH_CHECK(u.dim() == 3 && delta.dim() == 3 && A.dim() == 2 && B.dim() == 4,
                    "selective_scan on cpu: expected u, delta [B, K*D, L], A [K*D, N], B, C [B, K, N, L]");
    const i64 batch = u.size(0), channels = u.size(1), groups = B.size(1), delta_channels = delta.size(1);
    sizes.batch = batch;
    sizes.length = u.size(2);
    sizes.states = A.size(1);
    STD_TORCH_CHECK(sizes.length > 0 && channels > 0 && groups > 0 && channels % groups == 0 && delta_channels > 0 &&
                        channels % delta_channels == 0 && sizes.states > 0 && sizes.states <= 256,
                    "selective_scan on cpu: expected L >= 1, 1 <= N <= 256, and groups and delta channels "
                    "dividing u's");
    check_shape(delta, {batch, delta_channels, sizes.length}, kOperator, "delta");
    A = dense(A_in, {channels, sizes.states}, kOperator, "A");
    check_shape(B, {batch, groups, sizes.states, sizes.length}, kOperator, "B");
    check_shape(C, {batch, groups, sizes.states, sizes.length}, kOperator, "C");
    sizes.groups = groups;
    sizes.group_channels = channels / groups;
    sizes.chunk = sizes.states <= 32 ? 64 : 128;  // as in layout.py
    sizes.delta_ratio = channels / delta_channels;
    sizes.block = block_channels(batch, groups, sizes.group_channels);
    in.u = sequence(u, kOperator, "u");
    in.delta = sequence(delta, kOperator, "delta");
    in.B = projection(B, "B");
    in.C = projection(C, "C");
    in.A = floats(A);
    in.softplus = softplus;
    D = dense(D_in, {channels}, kOperator, "D");
    delta_bias = dense(bias_in, {delta_channels}, kOperator, "delta_bias");
    in.D = floats(D);
    in.delta_bias = floats(delta_bias);
  }
};

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                           const Tensor& C, const std::optional<Tensor>& D,
                                           const std::optional<Tensor>& delta_bias, bool delta_softplus,
                                           ScalarType out_dtype, bool save_states) {
  const Call call(u, delta, A, B, C, D, delta_bias, delta_softplus);
  const ScanSizes& s = call.sizes;
  Tensor out = allocate_sequence(u, out_dtype);
  Tensor last_state = allocate(u, {s.batch, s.channels(), s.states});
  Tensor states = allocate(u, {s.batch, save_states ? s.chunks() - 1 : 0, s.states, s.channels()});
  ForwardArgs args;
  args.sizes = s;
  args.in = call.in;
  args.out = sequence(out, kOperator, "out");
  args.last_state = floats(last_state);
  args.states = save_states ? floats(states) : nullptr;
  const ScanKernels& isa = kernels();
  parallel(s.work(), s.tasks(), [&](i64 begin, i64 end) { isa.forward(args, begin, end); });
  return {out, last_state, states};
}

// to[b, k, n, l] = sum over blocks of from[b, k, block, l, n], in the order of the blocks.
template <class Store>
void add_blocks(const ScanSizes& s, const float* from, const Store& store) {
  const i64 blocks = s.blocks();
  parallel(s.work(), s.batch * s.groups, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      const float* slot = from + i * blocks * s.length * s.states;
      for (i64 l = 0; l < s.length; ++l)
        for (i64 n = 0; n < s.states; ++n) {
          float total = 0.0f;
          for (i64 k = 0; k < blocks; ++k) total += slot[(k * s.length + l) * s.states + n];
          store(i / s.groups, i % s.groups, n, l, total);
        }
    }
  });
}

void store_projection(const ScanSizes& s, const float* from, const Tensor& to) {
  const Projection p = projection(to, "dB");
  const auto offset = [p](i64 b, i64 k, i64 n, i64 l) {
    return b * p.batch_stride + k * p.group_stride + n * p.state_stride + l * p.time_stride;
  };
  const auto store_as = [&](auto* data, auto convert) {
    add_blocks(s, from, [&](i64 b, i64 k, i64 n, i64 l, float x) { data[offset(b, k, n, l)] = convert(x); });
  };
  if (p.type == Type::f32)
    store_as(static_cast<float*>(p.data), [](float x) { return x; });
  else if (p.type == Type::bf16)
    store_as(static_cast<c10::BFloat16*>(p.data), [](float x) { return c10::BFloat16(x); });
  else
    store_as(static_cast<c10::Half*>(p.data), [](float x) { return c10::Half(x); });
}

// to[i] = sum over the batch, then over `ratio` neighbours, of from[b, i * ratio + j].
void add_batch(i64 batch, i64 count, i64 ratio, const float* from, float* to) {
  for (i64 i = 0; i < count; ++i) {
    double total = 0.0;
    for (i64 b = 0; b < batch; ++b)
      for (i64 j = 0; j < ratio; ++j) total += from[(b * count + i) * ratio + j];
    to[i] = static_cast<float>(total);
  }
}

// The gradient of a delta channel that several channels share: their sum, from [B, L, KD].
Tensor add_shared(const ScanSizes& s, const float* from, const Tensor& delta) {
  const i64 delta_channels = delta.size(1), ratio = s.delta_ratio;
  Tensor wide = allocate(delta, {s.batch, delta_channels, s.length}, {s.length * delta_channels, 1, delta_channels},
                         ScalarType::Float);
  float* to = floats(wide);
  parallel(s.work(), s.batch * s.length, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; ++row)
      for (i64 c = 0; c < delta_channels; ++c) {
        float total = 0.0f;
        for (i64 j = 0; j < ratio; ++j) total += from[(row * delta_channels + c) * ratio + j];
        to[row * delta_channels + c] = total;
      }
  });
  Tensor out = allocate_sequence(delta, delta.scalar_type());
  torch::stable::copy_(out, wide);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& dout, const std::optional<Tensor>& dlast_state, const Tensor& u, const Tensor& delta, const Tensor& A,
    const Tensor& B, const Tensor& C, const std::optional<Tensor>& D, const std::optional<Tensor>& delta_bias,
    const Tensor& states, bool delta_softplus) {
  const Call call(u, delta, A, B, C, D, delta_bias, delta_softplus);
  const ScanSizes& s = call.sizes;
  check_shape(dout, {s.batch, s.channels(), s.length}, kOperator, "dout");
  const Tensor kept = dense(states, {s.batch, s.chunks() - 1, s.states, s.channels()}, kOperator, "states");
  const std::optional<Tensor> dlast = dense(dlast_state, {s.batch, s.channels(), s.states}, kOperator, "dlast_state");
  Tensor du = allocate_sequence(u, u.scalar_type());
  Tensor dA = allocate(u, {s.channels(), s.states});
  Tensor dB = allocate_projection(B), dC = allocate_projection(C);
  Tensor dD = allocate(u, {D ? s.channels() : 0});
  Tensor dbias = allocate(u, {delta_bias ? delta.size(1) : 0});

  const bool shared = s.delta_ratio != 1;
  Tensor ddelta = shared ? allocate(u, {s.batch, s.channels(), s.length}, {s.length * s.channels(), 1, s.channels()},
                                    ScalarType::Float)
                         : allocate_sequence(delta, delta.scalar_type());
  const i64 weights = s.batch * s.channels(), projections = s.tasks() * s.length * s.states;
  const auto dA_parts = scratch(weights * s.states), dD_parts = scratch(weights), dbias_parts = scratch(weights);
  const auto dB_parts = scratch(projections), dC_parts = scratch(projections);

  BackwardArgs args;
  args.sizes = s;
  args.in = call.in;
  args.dout = sequence(dout, kOperator, "dout");
  args.dlast_state = floats(dlast);
  args.states = floats(kept);
  args.du = sequence(du, kOperator, "du");
  args.ddelta = sequence(ddelta, kOperator, "ddelta");
  args.dA = dA_parts.get();
  args.dD = dD_parts.get();
  args.ddelta_bias = dbias_parts.get();
  args.dB = dB_parts.get();
  args.dC = dC_parts.get();
  const ScanKernels& isa = kernels();
  parallel(s.work(), s.tasks(), [&](i64 begin, i64 end) { isa.backward(args, begin, end); });

  add_batch(s.batch, s.channels() * s.states, 1, dA_parts.get(), floats(dA));
  if (D) add_batch(s.batch, s.channels(), 1, dD_parts.get(), floats(dD));
  if (delta_bias)
    add_batch(s.batch, delta.size(1), s.delta_ratio, dbias_parts.get(), floats(dbias));
  store_projection(s, dB_parts.get(), dB);
  store_projection(s, dC_parts.get(), dC);
  if (shared) ddelta = add_shared(s, floats(ddelta), delta);
  return {du, ddelta, dA, dB, dC, dD, dbias};
}

}  // namespace
}  // namespace vmamba

STABLE_TORCH_LIBRARY_IMPL(vmamba, CPU, m) {
  m.impl("selective_scan", TORCH_BOX(&vmamba::forward));
  m.impl("selective_scan_backward", TORCH_BOX(&vmamba::backward));
}
