// vmamba::_ss2d_sequences and its backward on CPU tensors: checks, allocation, and the tasks on PyTorch's threads.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "instruction_set.h"
#include "ss2d_args.h"

namespace vmamba {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<i64>;

// Below this many multiply-adds the threads cost more than they bring.
constexpr i64 kSerialWork = 1 << 14;
// As many tasks as the backward is cut into where the shape allows. Never the number of threads: sums must not depend
// on it.
constexpr i64 kTasks = 16;

const Ss2dKernels& ss2d_kernels() {
#ifdef VMAMBA_X86
  const char* name = kernels().name;
  if (std::strcmp(name, "avx512") == 0) return avx512_ss2d();
  if (std::strcmp(name, "avx2") == 0) return avx2_ss2d();
#endif
  return portable_ss2d();
}

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

// Dense [B, C, L], channel-last if `like` is.
Tensor allocate_image(const Tensor& like, ScalarType type) {
  const i64 batch = like.size(0), channels = like.size(1), length = like.size(2);
  if (like.stride(1) == 1 && like.stride(2) != 1)
    return allocate(like, {batch, channels, length}, {length * channels, 1, channels}, type);
  return allocate(like, {batch, channels, length}, type);
}

Sequence sequence(const Tensor& t, const char* name) {
  Type type = Type::f32;
  if (t.scalar_type() == ScalarType::BFloat16)
    type = Type::bf16;
  else if (t.scalar_type() == ScalarType::Half)
    type = Type::f16;
  else
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, "ss2d on cpu: ", name, " must be float32, bfloat16 or float16");
  return {t.data_ptr(), type, t.stride(0), t.stride(1), t.stride(2)};
}

void check_shape(const Tensor& t, const Sizes& expected, const char* name) {
  bool same = t.dim() == static_cast<i64>(expected.size());
  for (i64 i = 0; same && i < t.dim(); ++i) same = t.size(i) == expected[i];
  STD_TORCH_CHECK(same, "ss2d on cpu: the shape of ", name, " does not fit that of x");
}

const float* dense(const Tensor& t, const Sizes& expected, const char* name) {
  check_shape(t, expected, name);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.is_contiguous(), "ss2d on cpu: ", name,
                  " must be float32 and contiguous");
  return static_cast<const float*>(t.data_ptr());
}

i64 divide_up(i64 a, i64 b) { return (a + b - 1) / b; }

// Channels of a block: whole vectors of every instruction set. Wide blocks share what is done once for all channels of
// a step, narrow ones make enough tasks of few images. No value of the forward depends on the blocks, so there the
// number of threads decides; the backward sums over them, so there the shape alone.
i64 forward_block(i64 batch, i64 channels) {
  const i64 threads = torch::stable::get_num_threads();
  for (const i64 block : {i64{96}, i64{48}, i64{32}})
    if (batch * divide_up(channels, block) >= threads) return block;
  return 16;
}

i64 backward_block(i64 batch, i64 channels) { return batch * divide_up(channels, 96) >= kTasks / 2 ? 96 : 48; }

// The arguments that the forward and the backward share.
struct Call {
  Ss2dSizes sizes;
  Ss2dInputs in;

  Call(const Tensor& x, const Tensor& x_dbl, const Tensor& dt_weight, const Tensor& A, const std::optional<Tensor>& D,
       const std::optional<Tensor>& delta_bias, const Tensor& maps, i64 chunk, i64 (*block)(i64 batch, i64 channels)) {
    STD_TORCH_CHECK(x.dim() == 3 && dt_weight.dim() == 3 && A.dim() == 2 && maps.dim() == 2 && chunk > 0,
                    "ss2d on cpu: expected x [B, C, L], dt_weight [K, C, R], A [K*C, N], maps [K, L]");
    sizes.batch = x.size(0);
    sizes.channels = x.size(1);
    sizes.length = x.size(2);
    sizes.directions = maps.size(0);
    sizes.rank = dt_weight.size(2);
    sizes.states = A.size(1);
    sizes.chunk = chunk;
    const i64 K = sizes.directions, C = sizes.channels, L = sizes.length;
    STD_TORCH_CHECK(C > 0 && L > 0 && K > 0 && sizes.rank > 0 && sizes.states > 0 && sizes.states <= 256,
                    "ss2d on cpu: expected C, L, K, R >= 1 and 1 <= N <= 256");
    in.x = sequence(x, "x");
    in.x_dbl = dense(x_dbl, {sizes.batch, L, sizes.row()}, "x_dbl");
    in.dt_weight = dense(dt_weight, {K, C, sizes.rank}, "dt_weight");
    in.A = dense(A, {K * C, sizes.states}, "A");
    if (D) in.D = dense(*D, {K * C}, "D");
    if (delta_bias) in.delta_bias = dense(*delta_bias, {K * C}, "delta_bias");
    STD_TORCH_CHECK(maps.scalar_type() == ScalarType::Long && maps.is_contiguous() && maps.size(1) == L,
                    "ss2d on cpu: maps must be int64 [K, L] and contiguous");
    in.maps = static_cast<const i64*>(maps.data_ptr());
    for (i64 i = 0; i < K * L; ++i)
      STD_TORCH_CHECK(0 <= in.maps[i] && in.maps[i] < L, "ss2d on cpu: maps point outside the image");
    sizes.block = block(sizes.batch, C);
    sizes.batch_groups = sizes.batch < kTasks ? sizes.batch : kTasks;
    if (sizes.batch == 0) return;
    const i64 wanted = divide_up(kTasks, sizes.batch_groups);
    sizes.block_groups = wanted < sizes.blocks() ? wanted : sizes.blocks();
  }

  i64 work() const { return sizes.batch * sizes.directions * sizes.channels * sizes.length * sizes.states; }
};

template <class Run>
void parallel(i64 work, i64 count, const Run& run) {
  if (count == 0) return;
  if (work < kSerialWork) return run(0, count);
  torch::stable::parallel_for(0, count, 1, run);
}

std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& x_dbl, const Tensor& dt_weight, const Tensor& A,
                                   const std::optional<Tensor>& D, const std::optional<Tensor>& delta_bias,
                                   const Tensor& maps, i64 chunk, ScalarType out_dtype, bool save_states) {
  const Call call(x, x_dbl, dt_weight, A, D, delta_bias, maps, chunk, forward_block);
  const Ss2dSizes& s = call.sizes;
  Tensor out = allocate_image(x, out_dtype);
  Tensor states = allocate(x, {s.batch, save_states ? s.chunks() - 1 : 0, s.states, s.directions * s.channels});
  Ss2dForwardArgs args;
  args.sizes = s;
  args.in = call.in;
  args.out = sequence(out, "out");
  args.states = save_states ? static_cast<float*>(states.data_ptr()) : nullptr;
  const Ss2dKernels& isa = ss2d_kernels();
  parallel(call.work(), s.tasks(), [&](i64 begin, i64 end) { isa.forward(args, begin, end); });
  return {out, states};
}

// to[i] = sum over parts of from[part * count + i], in the order of the parts.
void add_parts(const float* from, i64 parts, i64 count, float* to) {
  constexpr i64 kSlice = 4096;
  parallel(parts * count, divide_up(count, kSlice), [&](i64 begin, i64 end) {
    const i64 last = end * kSlice < count ? end * kSlice : count;
    for (i64 i = begin * kSlice; i < last; ++i) to[i] = from[i];
    for (i64 part = 1; part < parts; ++part)
      for (i64 i = begin * kSlice; i < last; ++i) to[i] += from[part * count + i];
  });
}

// to[k, c, r] = sum over groups of from[group, k, r, c], by slices of channels that stay in cache.
void add_weights(const Ss2dSizes& s, const float* from, i64 rows, float* to) {
  constexpr i64 kSlice = 32;
  const i64 C = s.channels, all = s.directions * rows, slices = divide_up(C, kSlice);
  parallel(s.batch_groups * all * C, s.directions * slices, [&](i64 begin, i64 end) {
    std::vector<float> sum(rows * kSlice);
    for (i64 i = begin; i < end; ++i) {
      const i64 k = i / slices, first = i % slices * kSlice, count = C - first < kSlice ? C - first : kSlice;
      sum.assign(sum.size(), 0.0f);
      for (i64 group = 0; group < s.batch_groups; ++group)
        for (i64 r = 0; r < rows; ++r) {
          const float* part = from + (group * all + k * rows + r) * C + first;
          for (i64 c = 0; c < count; ++c) sum[r * kSlice + c] += part[c];
        }
      for (i64 c = 0; c < count; ++c)
        for (i64 r = 0; r < rows; ++r) to[(k * C + first + c) * rows + r] = sum[r * kSlice + c];
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& dout, const Tensor& x, const Tensor& x_dbl, const Tensor& dt_weight, const Tensor& A,
    const std::optional<Tensor>& D, const std::optional<Tensor>& delta_bias, const Tensor& maps, const Tensor& states,
    i64 chunk) {
  const Call call(x, x_dbl, dt_weight, A, D, delta_bias, maps, chunk, backward_block);
  const Ss2dSizes& s = call.sizes;
  const i64 KC = s.directions * s.channels;
  check_shape(dout, {s.batch, s.channels, s.length}, "dout");
  Tensor dx = allocate_image(x, x.scalar_type());
  Tensor dx_dbl = allocate(x, {s.batch, s.length, s.row()});
  Tensor d_dt_weight = allocate(x, {s.directions, s.channels, s.rank});
  Tensor dA = allocate(x, {KC, s.states});
  Tensor dD = allocate(x, {D ? KC : 0});
  Tensor dbias = allocate(x, {delta_bias ? KC : 0});
  const auto data = [](Tensor& t) { return static_cast<float*>(t.data_ptr()); };
  const auto scratch = [](i64 floats) { return std::unique_ptr<float[]>(new float[floats]); };
  const i64 groups = s.batch_groups, x_dbl_floats = s.batch * s.length * s.row();
  const auto dW_parts = scratch(groups * KC * s.rank), dA_parts = scratch(groups * KC * s.states);
  const auto dbias_parts = scratch(groups * KC), dD_parts = scratch(groups * s.channels);
  const auto dx_dbl_parts = scratch(s.block_groups > 1 ? s.block_groups * x_dbl_floats : 0);

  Ss2dBackwardArgs args;
  args.sizes = s;
  args.in = call.in;
  args.dout = sequence(dout, "dout");
  args.states = dense(states, {s.batch, s.chunks() - 1, s.states, KC}, "states");
  args.dx = sequence(dx, "dx");
  args.dx_dbl = s.block_groups > 1 ? dx_dbl_parts.get() : data(dx_dbl);
  args.d_dt_weight = dW_parts.get();
  args.dA = dA_parts.get();
  args.d_delta_bias = dbias_parts.get();
  args.dD = dD_parts.get();
  const Ss2dKernels& isa = ss2d_kernels();
  parallel(call.work(), s.backward_tasks(), [&](i64 begin, i64 end) { isa.backward(args, begin, end); });

  if (s.block_groups > 1) add_parts(dx_dbl_parts.get(), s.block_groups, x_dbl_floats, data(dx_dbl));
  add_weights(s, dW_parts.get(), s.rank, data(d_dt_weight));
  add_weights(s, dA_parts.get(), s.states, data(dA));
  if (delta_bias) add_weights(s, dbias_parts.get(), 1, data(dbias));
  for (i64 c = 0; D && c < s.channels; ++c) {
    float sum = 0.0f;
    for (i64 group = 0; group < groups; ++group) sum += dD_parts[group * s.channels + c];
    for (i64 k = 0; k < s.directions; ++k) data(dD)[k * s.channels + c] = sum;
  }
  return {dx, dx_dbl, d_dt_weight, dA, dD, dbias};
}

}  // namespace
}  // namespace vmamba

STABLE_TORCH_LIBRARY_IMPL(vmamba, CPU, m) {
  m.impl("_ss2d_sequences", TORCH_BOX(&vmamba::forward));
  m.impl("_ss2d_sequences_backward", TORCH_BOX(&vmamba::backward));
}
