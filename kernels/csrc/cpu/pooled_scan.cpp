// vmamba::_pooled_scan and its backward on CPU tensors: checks, allocation, and the tasks on PyTorch's threads.

#include "instruction_set.h"
#include "pooled_args.h"
#include "tasks.h"
#include "tensors.h"

namespace vmamba {
namespace {

constexpr const char* kOperator = "pooled_scan on cpu";

Type type_of(const Tensor& t) { return vmamba::type_of(t, kOperator, "every tensor"); }

void* moved(const Tensor& t, i64 elements) {
  return static_cast<char*>(t.data_ptr()) + elements * bytes_of(t.scalar_type());
}

// The channels from `channel` on of a [B, channels, P], walked from its end if `back`.
Sequence walk(const Tensor& t, i64 channel, bool back) {
  const i64 end = back ? (t.size(2) - 1) * t.stride(2) : 0;
  const i64 step = back ? -t.stride(2) : t.stride(2);
  return {moved(t, channel * t.stride(1) + end), type_of(t), t.stride(0), t.stride(1), step};
}

Projection walk_projection(const Tensor& t, i64 group, bool back) {
  const i64 end = back ? (t.size(3) - 1) * t.stride(3) : 0;
  return {moved(t, group * t.stride(1) + end), type_of(t),  t.stride(0), t.stride(1), t.stride(2),
          back ? -t.stride(3) : t.stride(3)};
}

Sequence walk(const Steps& z, i64 group, i64 steps, bool back) {
  return {z.at(0, group, 0, back ? steps - 1 : 0), Type::f32, z.batch_stride, z.channel_stride,
          back ? -z.step_stride : z.step_stride};
}

// Dense [B, groups, D, P] of scratch memory: channel-last [B, P, groups, D] or [B, groups, D, P].
Steps steps_in(float* data, const PooledSizes& s, i64 groups) {
  const i64 P = s.steps(), D = s.channels;
  if (s.channel_last) return {data, P * groups * D, D, 1, groups * D};
  return {data, groups * D * P, D * P, P, 1};
}

// A [B, K, D, L] or, without an axis of groups, [B, K*D, L].
Image image(const Tensor& t, i64 channels) {
  if (t.dim() == 4) return {t.data_ptr(), type_of(t), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
  return {t.data_ptr(), type_of(t), t.stride(0), channels * t.stride(1), t.stride(1), t.stride(2)};
}

// The arguments that the forward and the backward share; holds the weights that had to be made contiguous.
struct Call {
  PooledSizes pooled;
  ScanSizes scan;  // of one group
  std::vector<ScanInputs> in;
  Tensor A;
  std::optional<Tensor> D, delta_bias;
  i64 reverse;
  i64 delta_channels;

  Call(const Tensor& u_full, const Tensor& u, const Tensor& delta, const Tensor& A_in, const Tensor& B, const Tensor& C,
       const std::optional<Tensor>& D_in, const std::optional<Tensor>& bias_in, i64 outer, i64 pool1, i64 inner,
       i64 pool2, i64 reverse, bool softplus, bool average, i64 chunk)
      : A(A_in), reverse(reverse) {
    STD_TORCH_CHECK(u_full.dim() == 4 && u.dim() == 3 && delta.dim() == 3 && A_in.dim() == 2 && chunk > 0,
                    "pooled_scan on cpu: expected u_full [B, K, D, L], u_pooled, delta [B, K*D, P], A [K*D, N]");
    const i64 batch = u_full.size(0), K = u_full.size(1), D_ = u_full.size(2), P = outer * inner;
    const i64 channels = K * D_, states = A_in.size(1);
    delta_channels = delta.size(1);
    STD_TORCH_CHECK(outer > 0 && pool1 > 0 && inner > 0 && pool2 > 0 && K > 0 && K <= 32 && D_ > 0 && states > 0 &&
                        states <= 256 && delta_channels > 0 && channels % delta_channels == 0 &&
                        delta_channels % K == 0 && (!average || K <= 2),
                    "pooled_scan on cpu: expected P, D >= 1, 1 <= K <= 32, 1 <= N <= 256 and delta channels that fit");
    check_shape(u_full, {batch, K, D_, P * pool1 * pool2}, kOperator, "u_full");
    check_shape(u, {batch, channels, P}, kOperator, "u_pooled");
    check_shape(delta, {batch, delta_channels, P}, kOperator, "delta");
    check_shape(B, {batch, K, states, P}, kOperator, "B");
    check_shape(C, {batch, K, states, P}, kOperator, "C");
    A = dense(A_in, {channels, states}, kOperator, "A");
    D = dense(D_in, {channels}, kOperator, "D");
    delta_bias = dense(bias_in, {delta_channels}, kOperator, "delta_bias");

    pooled.batch = batch, pooled.groups = K, pooled.channels = D_;
    pooled.outer = outer, pooled.pool1 = pool1, pooled.inner = inner, pooled.pool2 = pool2;
    pooled.average = average;
    pooled.channel_last = u_full.stride(2) == 1 && u_full.stride(3) != 1;
    STD_TORCH_CHECK(pooled.channel_last || u_full.stride(3) == 1 || u_full.size(3) == 1,
                    "pooled_scan on cpu: u_full must have its channels or its tokens side by side");
    const i64 wanted = batch > 0 ? ceil_div(kTasks, pooled.images()) : 1;
    pooled.parts = wanted < P ? wanted : P;

    scan.batch = batch, scan.groups = 1, scan.group_channels = D_, scan.length = P, scan.states = states;
    scan.chunk = chunk;
    scan.delta_ratio = channels / delta_channels;
    scan.block = batch * K * ceil_div(D_, 96) >= kTasks ? 96 : 48;
    for (i64 g = 0; g < K; ++g) {
      ScanInputs group;
      group.u = walk(u, g * D_, back(g));
      group.delta = walk(delta, g * (delta_channels / K), back(g));
      group.B = walk_projection(B, g, back(g));
      group.C = walk_projection(C, g, back(g));
      group.A = floats(A) + g * D_ * states;
      if (delta_bias) group.delta_bias = floats(*delta_bias) + g * (delta_channels / K);
      group.softplus = softplus;
      in.push_back(group);
    }
  }

  bool back(i64 group) const { return reverse >> group & 1; }
  i64 scan_work() const { return pooled.groups * scan.batch * scan.channels() * scan.length * scan.states; }
  i64 token_work() const { return pooled.batch * pooled.groups * pooled.channels * pooled.tokens(); }
};

// The tasks of every group's scan as one range of tasks.
template <class Args>
void scan_groups(const Call& call, const std::vector<Args>& args, void (*run)(const Args&, i64, i64)) {
  const i64 each = call.scan.tasks();
  parallel(call.scan_work(), each * call.pooled.groups, [&](i64 begin, i64 end) {
    while (begin < end) {
      const i64 group = begin / each, stop = end < (group + 1) * each ? end : (group + 1) * each;
      run(args[group], begin - group * each, stop - group * each);
      begin = stop;
    }
  });
}

std::tuple<Tensor, Tensor> forward(const Tensor& u_full, const Tensor& u_pooled, const Tensor& delta, const Tensor& A,
                                   const Tensor& B, const Tensor& C, const std::optional<Tensor>& D,
                                   const std::optional<Tensor>& delta_bias, i64 outer, i64 pool1, i64 inner, i64 pool2,
                                   i64 reverse, bool delta_softplus, bool average, i64 chunk, ScalarType out_dtype,
                                   bool save_states) {
  Call call(u_full, u_pooled, delta, A, B, C, D, delta_bias, outer, pool1, inner, pool2, reverse, delta_softplus,
            average, chunk);
  const PooledSizes& p = call.pooled;
  const ScanSizes& s = call.scan;
  STD_TORCH_CHECK(out_dtype == ScalarType::Float || out_dtype == u_full.scalar_type(),
                  "pooled_scan on cpu: the output must be float32 or of u_full's type");
  Tensor out = allocate_sequence(u_full, (average ? 1 : p.groups) * p.channels, p.tokens(), p.channel_last, out_dtype);
  const i64 kept = save_states ? s.chunks() - 1 : 0;
  Tensor states = allocate(u_full, {p.groups, s.batch, kept, s.states, p.channels});
  const Floats z_data = scratch(p.batch * p.groups * p.channels * p.steps());
  const Steps z = steps_in(z_data.get(), p, p.groups);
  const i64 last_floats = s.batch * p.channels * s.states;
  const Floats last = scratch(p.groups * last_floats);
  std::vector<ForwardArgs> args(p.groups);
  for (i64 g = 0; g < p.groups; ++g) {
    args[g].sizes = s;
    args[g].in = call.in[g];
    args[g].out = walk(z, g, p.steps(), call.back(g));
    args[g].last_state = last.get() + g * last_floats;
    if (kept > 0) args[g].states = floats(states) + g * kept * last_floats;
  }
  scan_groups(call, args, kernels().forward);

  ExpandArgs e;
  e.sizes = p;
  e.u = image(u_full, p.channels);
  e.z = z;
  e.D = call.D ? floats(*call.D) : nullptr;
  e.y = image(out, p.channels);
  const PooledKernels& isa = VMAMBA_KERNELS(pooled);
  parallel(call.token_work(), expand_tasks(p), [&](i64 begin, i64 end) { isa.expand(e, begin, end); });
  return {out, states};
}

// to[b, g, n, p] = sum over blocks of from[g][b, block, step of p, n], in the order of the blocks.
template <class T>
void add_blocks(const Call& call, const float* from, const Tensor& to) {
  const ScanSizes& s = call.scan;
  const i64 K = call.pooled.groups, slot = s.length * s.states, batch_floats = s.blocks() * slot;
  parallel(call.scan_work(), K * s.batch, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      const i64 g = i / s.batch, b = i % s.batch;
      T* row = static_cast<T*>(to.data_ptr()) + b * to.stride(0) + g * to.stride(1);
      for (i64 t = 0; t < s.length; ++t)
        for (i64 n = 0; n < s.states; ++n) {
          float total = 0.0f;
          for (i64 k = 0; k < s.blocks(); ++k) total += from[i * batch_floats + k * slot + t * s.states + n];
          row[n * to.stride(2) + (call.back(g) ? s.length - 1 - t : t) * to.stride(3)] = T(total);
        }
    }
  });
}

void store_projection(const Call& call, const float* from, const Tensor& to) {
  if (type_of(to) == Type::f32) return add_blocks<float>(call, from, to);
  if (type_of(to) == Type::bf16) return add_blocks<c10::BFloat16>(call, from, to);
  add_blocks<c10::Half>(call, from, to);
}

// to[i] = sum over `ratio` neighbours.
void add_neighbours(const float* from, i64 count, i64 ratio, float* to) {
  for (i64 i = 0; i < count; ++i) {
    to[i] = 0.0f;
    for (i64 j = 0; j < ratio; ++j) to[i] += from[i * ratio + j];
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& dy, const Tensor& u_full, const Tensor& u_pooled, const Tensor& delta, const Tensor& A,
    const Tensor& B, const Tensor& C, const std::optional<Tensor>& D, const std::optional<Tensor>& delta_bias,
    const Tensor& states_in, i64 outer, i64 pool1, i64 inner, i64 pool2, i64 reverse, bool delta_softplus, bool average,
    i64 chunk) {
  Call call(u_full, u_pooled, delta, A, B, C, D, delta_bias, outer, pool1, inner, pool2, reverse, delta_softplus,
            average, chunk);
  const PooledSizes& p = call.pooled;
  const ScanSizes& s = call.scan;
  const i64 K = p.groups, channels = K * p.channels, each_weights = s.batch * p.channels * s.states;
  check_shape(dy, {p.batch, average ? p.channels : channels, p.tokens()}, kOperator, "dy");
  STD_TORCH_CHECK(dy.scalar_type() == ScalarType::Float || dy.scalar_type() == u_full.scalar_type(),
                  "pooled_scan on cpu: dy must be float32 or of u_full's type");
  STD_TORCH_CHECK(p.channel_last ? dy.stride(1) == 1 || dy.size(1) == 1 : dy.stride(2) == 1 || dy.size(2) == 1,
                  "pooled_scan on cpu: dy must lie as u_full does");
  Tensor states = dense(states_in, {K, s.batch, s.chunks() - 1, s.states, p.channels}, kOperator, "states");
  const i64 L = p.tokens(), width = p.channels;
  Tensor du_full = !D              ? allocate(u_full, {0}, u_full.scalar_type())
                   : p.channel_last ? allocate(u_full, {p.batch, K, width, L}, {L * channels, width, 1, channels},
                                               u_full.scalar_type())
                                    : allocate(u_full, {p.batch, K, width, L}, u_full.scalar_type());
  Tensor du = allocate_sequence(u_pooled, channels, s.length, is_channel_last(u_pooled), u_pooled.scalar_type());
  Tensor ddelta =
      allocate_sequence(delta, call.delta_channels, s.length, is_channel_last(delta), delta.scalar_type());
  Tensor dA = allocate(u_full, {channels, s.states});
  Tensor dB = allocate_projection(B), dC = allocate_projection(C);
  Tensor dD = allocate(u_full, {D ? channels : 0});
  Tensor dbias = allocate(u_full, {delta_bias ? call.delta_channels : 0});

  const i64 kept_groups = average ? 1 : K, skip_rows = p.batch * (p.channel_last ? p.parts : 1);
  const Floats dz_data = scratch(p.batch * kept_groups * width * p.steps()), dD_parts = scratch(skip_rows * channels);
  const Steps dz = steps_in(dz_data.get(), p, kept_groups);
  GatherArgs gather;
  gather.sizes = p;
  gather.dy = image(dy, width);
  gather.u = image(u_full, width);
  gather.D = call.D ? floats(*call.D) : nullptr;
  if (D) gather.du = image(du_full, width);
  gather.dz = dz;
  gather.dD = dD_parts.get();
  const PooledKernels& isa = VMAMBA_KERNELS(pooled);
  parallel(call.token_work(), gather_tasks(p), [&](i64 begin, i64 end) { isa.gather(gather, begin, end); });
  if (D) add_parts(dD_parts.get(), skip_rows, channels, floats(dD));

  const bool shared = s.delta_ratio != 1;
  Tensor ddelta_apart = allocate_sequence(delta, shared ? channels : 0, s.length, true, ScalarType::Float);
  const i64 projections = s.tasks() * s.length * s.states;
  const Floats dA_parts = scratch(K * each_weights), dD_unused = scratch(K * s.batch * width),
               dbias_parts = scratch(K * s.batch * width), dB_parts = scratch(K * projections),
               dC_parts = scratch(K * projections);
  std::vector<BackwardArgs> args(K);
  for (i64 g = 0; g < K; ++g) {
    BackwardArgs& a = args[g];
    a.sizes = s;
    a.in = call.in[g];
    a.dout = walk(dz, average ? 0 : g, p.steps(), call.back(g));
    a.states = floats(states) + g * (s.chunks() - 1) * each_weights;
    a.du = walk(du, g * width, call.back(g));
    a.ddelta = walk(shared ? ddelta_apart : ddelta, g * width, call.back(g));
    a.dA = dA_parts.get() + g * each_weights;
    a.dD = dD_unused.get() + g * s.batch * width;
    a.ddelta_bias = dbias_parts.get() + g * s.batch * width;
    a.dB = dB_parts.get() + g * projections;
    a.dC = dC_parts.get() + g * projections;
  }
  scan_groups(call, args, kernels().backward);

  const Floats dbias_wide = scratch(channels);
  for (i64 g = 0; g < K; ++g) {
    add_parts(args[g].dA, s.batch, width * s.states, floats(dA) + g * width * s.states);
    add_parts(args[g].ddelta_bias, s.batch, width, dbias_wide.get() + g * width);
  }
  if (delta_bias) add_neighbours(dbias_wide.get(), call.delta_channels, s.delta_ratio, floats(dbias));
  store_projection(call, dB_parts.get(), dB);
  store_projection(call, dC_parts.get(), dC);
  if (shared) {
    Tensor wide = allocate_sequence(delta, call.delta_channels, s.length, true, ScalarType::Float);
    add_neighbours(floats(ddelta_apart), s.batch * s.length * call.delta_channels, s.delta_ratio, floats(wide));
    torch::stable::copy_(ddelta, wide);
  }
  return {du_full, du, ddelta, dA, dB, dC, dD, dbias};
}

}  // namespace
}  // namespace vmamba

STABLE_TORCH_LIBRARY_IMPL(vmamba, CPU, m) {
  m.impl("_pooled_scan", TORCH_BOX(&vmamba::forward));
  m.impl("_pooled_scan_backward", TORCH_BOX(&vmamba::backward));
}
