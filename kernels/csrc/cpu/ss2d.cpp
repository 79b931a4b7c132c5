// vmamba::_ss2d_sequences and its backward on CPU tensors: checks, allocation, and the tasks on PyTorch's threads.

#include "instruction_set.h"
#include "ss2d_args.h"
#include "tasks.h"
#include "tensors.h"

namespace vmamba {
namespace {

constexpr const char* kOperator = "ss2d on cpu";

// Channels of a block: whole vectors of every instruction set. Wide blocks share what is done once for all channels of
// a step, narrow ones make enough tasks of few images. No value of the forward depends on the blocks, so there the
// number of threads decides; the backward sums over them, so there the shape alone.
i64 forward_block(i64 batch, i64 channels) {
  const i64 threads = torch::stable::get_num_threads();
  for (const i64 block : {i64{96}, i64{48}, i64{32}})
    if (batch * ceil_div(channels, block) >= threads) return block;
  return 16;
}

i64 backward_block(i64 batch, i64 channels) { return batch * ceil_div(channels, 96) >= kTasks / 2 ? 96 : 48; }

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
    in.x = sequence(x, kOperator, "x");
    in.x_dbl = dense_floats(x_dbl, {sizes.batch, L, sizes.row()}, kOperator, "x_dbl");
    in.dt_weight = dense_floats(dt_weight, {K, C, sizes.rank}, kOperator, "dt_weight");
    in.A = dense_floats(A, {K * C, sizes.states}, kOperator, "A");
    in.D = dense_floats(D, {K * C}, kOperator, "D");
    in.delta_bias = dense_floats(delta_bias, {K * C}, kOperator, "delta_bias");
    STD_TORCH_CHECK(maps.scalar_type() == ScalarType::Long && maps.is_contiguous() && maps.size(1) == L,
                    "ss2d on cpu: maps must be int64 [K, L] and contiguous");
    in.maps = static_cast<const i64*>(maps.data_ptr());
    for (i64 i = 0; i < K * L; ++i)
      STD_TORCH_CHECK(0 <= in.maps[i] && in.maps[i] < L, "ss2d on cpu: maps point outside the image");
    sizes.block = block(sizes.batch, C);
    sizes.batch_groups = sizes.batch < kTasks ? sizes.batch : kTasks;
    if (sizes.batch == 0) return;
    const i64 wanted = ceil_div(kTasks, sizes.batch_groups);
    sizes.block_groups = wanted < sizes.blocks() ? wanted : sizes.blocks();
  }

  i64 work() const { return sizes.batch * sizes.directions * sizes.channels * sizes.length * sizes.states; }
};

std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& x_dbl, const Tensor& dt_weight, const Tensor& A,
                                   const std::optional<Tensor>& D, const std::optional<Tensor>& delta_bias,
                                   const Tensor& maps, i64 chunk, ScalarType out_dtype, bool save_states) {
  const Call call(x, x_dbl, dt_weight, A, D, delta_bias, maps, chunk, forward_block);
  const Ss2dSizes& s = call.sizes;
  Tensor out = allocate_sequence(x, out_dtype);
  Tensor states = allocate(x, {s.batch, save_states ? s.chunks() - 1 : 0, s.states, s.directions * s.channels});
  Ss2dForwardArgs args;
  args.sizes = s;
  args.in = call.in;
  args.out = sequence(out, kOperator, "out");
  args.states = save_states ? floats(states) : nullptr;
  const Ss2dKernels& isa = VMAMBA_KERNELS(ss2d);
  parallel(call.work(), s.tasks(), [&](i64 begin, i64 end) { isa.forward(args, begin, end); });
  return {out, states};
}

// to[k, c, r] = sum over groups of from[group, k, r, c], by slices of channels that stay in cache.
void add_weights(const Ss2dSizes& s, const float* from, i64 rows, float* to) {
  constexpr i64 kSlice = 32;
  const i64 C = s.channels, all = s.directions * rows, slices = ceil_div(C, kSlice);
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
  check_shape(dout, {s.batch, s.channels, s.length}, kOperator, "dout");
  Tensor dx = allocate_sequence(x, x.scalar_type());
  Tensor dx_dbl = allocate(x, {s.batch, s.length, s.row()});
  Tensor d_dt_weight = allocate(x, {s.directions, s.channels, s.rank});
  Tensor dA = allocate(x, {KC, s.states});
  Tensor dD = allocate(x, {D ? KC : 0});
  Tensor dbias = allocate(x, {delta_bias ? KC : 0});
  const i64 groups = s.batch_groups, x_dbl_floats = s.batch * s.length * s.row();
  const auto dW_parts = scratch(groups * KC * s.rank), dA_parts = scratch(groups * KC * s.states);
  const auto dbias_parts = scratch(groups * KC), dD_parts = scratch(groups * s.channels);
  const auto dx_dbl_parts = scratch(s.block_groups > 1 ? s.block_groups * x_dbl_floats : 0);

  Ss2dBackwardArgs args;
  args.sizes = s;
  args.in = call.in;
  args.dout = sequence(dout, kOperator, "dout");
  args.states = dense_floats(states, {s.batch, s.chunks() - 1, s.states, KC}, kOperator, "states");
  args.dx = sequence(dx, kOperator, "dx");
  args.dx_dbl = s.block_groups > 1 ? dx_dbl_parts.get() : floats(dx_dbl);
  args.d_dt_weight = dW_parts.get();
  args.dA = dA_parts.get();
  args.d_delta_bias = dbias_parts.get();
  args.dD = dD_parts.get();
  const Ss2dKernels& isa = VMAMBA_KERNELS(ss2d);
  parallel(call.work(), s.backward_tasks(), [&](i64 begin, i64 end) { isa.backward(args, begin, end); });

  if (s.block_groups > 1) add_parts(dx_dbl_parts.get(), s.block_groups, x_dbl_floats, floats(dx_dbl));
  add_weights(s, dW_parts.get(), s.rank, floats(d_dt_weight));
  add_weights(s, dA_parts.get(), s.states, floats(dA));
  if (delta_bias) add_weights(s, dbias_parts.get(), 1, floats(dbias));
  for (i64 c = 0; D && c < s.channels; ++c) {
    float sum = 0.0f;
    for (i64 group = 0; group < groups; ++group) sum += dD_parts[group * s.channels + c];
    for (i64 k = 0; k < s.directions; ++k) floats(dD)[k * s.channels + c] = sum;
  }
  return {dx, dx_dbl, d_dt_weight, dA, dD, dbias};
}

}  // namespace
}  // namespace vmamba

STABLE_TORCH_LIBRARY_IMPL(vmamba, CPU, m) {
  m.impl("_ss2d_sequences", TORCH_BOX(&vmamba::forward));
  m.impl("_ss2d_sequences_backward", TORCH_BOX(&vmamba::backward));
}
