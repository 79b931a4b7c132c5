// vmamba::_pooled_scan and its backward on CPU tensors: checks, allocation, and the tasks on PyTorch's threads.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "instruction_set.h"
#include "pooled_args.h"

namespace vmamba {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<i64>;
using Floats = std::unique_ptr<float[]>;

// Below this many multiply-adds the threads cost more than they bring.
constexpr i64 kSerialWork = 1 << 14;
// As many tasks as a backward pass is cut into where the shape allows. Never the number of threads: sums must not depend
// on it.
constexpr i64 kTasks = 16;

const PooledKernels& pooled_kernels() {
#ifdef VMAMBA_X86
  const char* name = kernels().name;
  if (std::strcmp(name, "avx512") == 0) return avx512_pooled();
  if (std::strcmp(name, "avx2") == 0) return avx2_pooled();
#endif
  return portable_pooled();
}

Floats room(i64 count) { return Floats(new float[count > 0 ? count : 1]); }
float* floats(Tensor& t) { return static_cast<float*>(t.data_ptr()); }
i64 divide_up(i64 a, i64 b) { return (a + b - 1) / b; }

Tensor allocate(const Tensor& like, const Sizes& sizes, const Sizes& strides, ScalarType type) {
  std::int32_t device = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  const auto dtype = torch::stable::detail::to<std::int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<i64>(sizes.size()), sizes.data(), strides.data(), dtype,
                                                  device, 0, &handle));
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

bool sequence_is_channel_last(const Tensor& t) { return t.stride(1) == 1 && t.stride(2) != 1; }

Type type_of(const Tensor& t) {
  if (t.scalar_type() == ScalarType::BFloat16) return Type::bf16;
  if (t.scalar_type() == ScalarType::Half) return Type::f16;
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float,
                  "pooled_scan on cpu: tensors must be float32, bfloat16 or float16");
  return Type::f32;
}

i64 bytes_of(Type type) { return type == Type::f32 ? 4 : 2; }

void check_shape(const Tensor& t, const Sizes& expected, const char* name) {
  bool same = t.dim() == static_cast<i64>(expected.size());
  for (i64 i = 0; same && i < t.dim(); ++i) same = t.size(i) == expected[i];
  STD_TORCH_CHECK(same, "pooled_scan on cpu: the shape of ", name, " does not fit that of u_full");
}

Tensor dense(const Tensor& t, const Sizes& expected, const char* name) {
  check_shape(t, expected, name);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, "pooled_scan on cpu: ", name, " must be float32");
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

void* moved(const Tensor& t, i64 elements) {
  return static_cast<char*>(t.data_ptr()) + elements * bytes_of(type_of(t));
}

// The channels from `channel` on of a [B, channels, P], walked from its end if `back`.
Sequence walk(const Tensor& t, i64 channel, bool back) {
  const i64 end = back ? (t.size(2) - 1) * t.stride(2) : 0;
  return {moved(t, channel * t.stride(1) + end), type_of(t), t.stride(0), t.stride(1), back ? -t.stride(2) : t.stride(2)};
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
    check_shape(u_full, {batch, K, D_, P * pool1 * pool2}, "u_full");
    check_shape(u, {batch, channels, P}, "u_pooled");
    check_shape(delta, {batch, delta_channels, P}, "delta");
    check_shape(B, {batch, K, states, P}, "B");
    check_shape(C, {batch, K, states, P}, "C");
    A = dense(A_in, {channels, states}, "A");
    if (D_in) D = dense(*D_in, {channels}, "D");
    if (bias_in) delta_bias = dense(*bias_in, {delta_channels}, "delta_bias");

    pooled.batch = batch, pooled.groups = K, pooled.channels = D_;
    pooled.outer = outer, pooled.pool1 = pool1, pooled.inner = inner, pooled.pool2 = pool2;
    pooled.average = average;
    pooled.channel_last = u_full.stride(2) == 1 && u_full.stride(3) != 1;
    STD_TORCH_CHECK(pooled.channel_last || u_full.stride(3) == 1 || u_full.size(3) == 1,
                    "pooled_scan on cpu: u_full must have its channels or its tokens side by side");
    const i64 wanted = batch > 0 ? divide_up(kTasks, pooled.images()) : 1;
    pooled.parts = wanted < P ? wanted : P;

    scan.batch = batch, scan.groups = 1, scan.group_channels = D_, scan.length = P, scan.states = states;
    scan.chunk = chunk;
    scan.delta_ratio = channels / delta_channels;
    scan.block = batch * K * divide_up(D_, 96) >= kTasks ? 96 : 48;
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

template <class Run>
void parallel(i64 work, i64 count, const Run& run) {
  if (count == 0) return;
  if (work < kSerialWork) return run(0, count);
  torch::stable::parallel_for(0, count, 1, run);
}

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
  const Floats z_data = room(p.batch * p.groups * p.channels * p.steps());
  const Steps z = steps_in(z_data.get(), p, p.groups);
  const i64 last_floats = s.batch * p.channels * s.states;
  const Floats last = room(p.groups * last_floats);
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
  const PooledKernels& isa = pooled_kernels();
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

// to[i] = sum over the rows of from[row * count + i].
void add_rows(const float* from, i64 rows, i64 count, float* to) {
  constexpr i64 kSlice = 1024;
  parallel(rows * count, divide_up(count, kSlice), [&](i64 begin, i64 end) {
    const i64 last = end * kSlice < count ? end * kSlice : count;
    for (i64 i = begin * kSlice; i < last; ++i) to[i] = 0.0f;
    for (i64 row = 0; row < rows; ++row)
      for (i64 i = begin * kSlice; i < last; ++i) to[i] += from[row * count + i];
  });
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
  check_shape(dy, {p.batch, average ? p.channels : channels, p.tokens()}, "dy");
  STD_TORCH_CHECK(dy.scalar_type() == ScalarType::Float || dy.scalar_type() == u_full.scalar_type(),
                  "pooled_scan on cpu: dy must be float32 or of u_full's type");
  STD_TORCH_CHECK(p.channel_last ? dy.stride(1) == 1 || dy.size(1) == 1 : dy.stride(2) == 1 || dy.size(2) == 1,
                  "pooled_scan on cpu: dy must lie as u_full does");
  Tensor states = dense(states_in, {K, s.batch, s.chunks() - 1, s.states, p.channels}, "states");
  const i64 L = p.tokens(), width = p.channels;
  Tensor du_full = !D              ? allocate(u_full, {0}, u_full.scalar_type())
                   : p.channel_last ? allocate(u_full, {p.batch, K, width, L}, {L * channels, width, 1, channels},
                                               u_full.scalar_type())
                                    : allocate(u_full, {p.batch, K, width, L}, u_full.scalar_type());
  Tensor du = allocate_sequence(u_pooled, channels, s.length, sequence_is_channel_last(u_pooled), u_pooled.scalar_type());
  Tensor ddelta =
      allocate_sequence(delta, call.delta_channels, s.length, sequence_is_channel_last(delta), delta.scalar_type());
  Tensor dA = allocate(u_full, {channels, s.states});
  Tensor dB = allocate_projection(B), dC = allocate_projection(C);
  Tensor dD = allocate(u_full, {D ? channels : 0});
  Tensor dbias = allocate(u_full, {delta_bias ? call.delta_channels : 0});

  const i64 kept_groups = average ? 1 : K, skip_rows = p.batch * (p.channel_last ? p.parts : 1);
  const Floats dz_data = room(p.batch * kept_groups * width * p.steps()), dD_parts = room(skip_rows * channels);
  const Steps dz = steps_in(dz_data.get(), p, kept_groups);
  GatherArgs gather;
  gather.sizes = p;
  gather.dy = image(dy, width);
  gather.u = image(u_full, width);
  gather.D = call.D ? floats(*call.D) : nullptr;
  if (D) gather.du = image(du_full, width);
  gather.dz = dz;
  gather.dD = dD_parts.get();
  const PooledKernels& isa = pooled_kernels();
  parallel(call.token_work(), gather_tasks(p), [&](i64 begin, i64 end) { isa.gather(gather, begin, end); });
  if (D) add_rows(dD_parts.get(), skip_rows, channels, floats(dD));

  const bool shared = s.delta_ratio != 1;
  Tensor ddelta_apart = allocate_sequence(delta, shared ? channels : 0, s.length, true, ScalarType::Float);
  const i64 projections = s.tasks() * s.length * s.states;
  const Floats dA_parts = room(K * each_weights), dD_unused = room(K * s.batch * width),
               dbias_parts = room(K * s.batch * width), dB_parts = room(K * projections),
               dC_parts = room(K * projections);
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

  const Floats dbias_wide = room(channels);
  for (i64 g = 0; g < K; ++g) {
    add_rows(args[g].dA, s.batch, width * s.states, floats(dA) + g * width * s.states);
    add_rows(args[g].ddelta_bias, s.batch, width, dbias_wide.get() + g * width);
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
