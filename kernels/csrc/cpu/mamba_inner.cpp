// vmamba::_mamba_inner_scan and its backward on CPU tensors: checks, and the tasks on PyTorch's threads.

#include "instruction_set.h"
#include "mamba_inner_args.h"
#include "tasks.h"
#include "tensors.h"

namespace vmamba {
namespace {

constexpr const char* kOperator = "mamba_inner on cpu";

// [B, L, E] in float32, the channels side by side.
TokenRows token_rows(const Tensor& t, const InnerSizes& s, const char* name) {
  check_shape(t, {s.batch, s.length, s.channels}, kOperator, name);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.stride(2) == 1, kOperator, ": ", name,
                  " must be float32 with the channels side by side");
  return {floats(t), t.stride(0), t.stride(1)};
}

// The arguments that the forward and the backward share.
struct Call {
  InnerSizes sizes;
  InnerInputs in;

  Call(const Tensor& u, const Tensor& x_dbl, const Tensor& dt_weight, const Tensor& A, const Tensor& D,
       const Tensor& delta_bias, const Tensor& z, i64 chunk, i64 block, i64 reverse, double scale) {
    STD_TORCH_CHECK(u.dim() == 3 && dt_weight.dim() == 3 && A.dim() == 2,
                    "mamba_inner on cpu: expected u [B, L, G*E], dt_weight [G, E, R], A [G*E, N]");
    InnerSizes& s = sizes;
    s.batch = u.size(0);
    s.length = u.size(1);
    s.directions = dt_weight.size(0);
    s.channels = dt_weight.size(1);
    s.rank = dt_weight.size(2);
    s.states = A.size(1);
    s.chunk = chunk;
    s.block = block;
    s.reverse = static_cast<std::uint64_t>(reverse);
    s.scale = static_cast<float>(scale);
    STD_TORCH_CHECK(s.batch > 0 && s.length > 0 && s.directions > 0 && s.directions <= 63 && s.channels > 0 &&
                        s.channels % 16 == 0 && s.rank > 0 && s.states > 0 && s.states <= 256 && chunk > 0 &&
                        block > 0 && block % 16 == 0,
                    "mamba_inner on cpu: expected B, L, G, R, N >= 1, N <= 256 and E a multiple of 16");
    in.u = dense_floats(u, {s.batch, s.length, s.all_channels()}, kOperator, "u");
    in.x_dbl = dense_floats(x_dbl, {s.batch, s.length, s.row()}, kOperator, "x_dbl");
    in.dt_weight = dense_floats(dt_weight, {s.directions, s.channels, s.rank}, kOperator, "dt_weight");
    in.A = dense_floats(A, {s.all_channels(), s.states}, kOperator, "A");
    in.D = dense_floats(D, {s.all_channels()}, kOperator, "D");
    in.delta_bias = dense_floats(delta_bias, {s.all_channels()}, kOperator, "delta_bias");
    in.z = token_rows(z, s, "z");
  }

  Sizes tokens() const { return {sizes.batch, sizes.length, sizes.channels}; }
  float* kept(const Tensor& states) {
    STD_TORCH_CHECK(states.dim() == 4 && states.size(1) >= sizes.chunks(),
                    "mamba_inner on cpu: expected states [B, S, N, G*E] with a place for every chunk");
    sizes.kept = states.size(1);
    return dense_floats(states, {sizes.batch, sizes.kept, sizes.states, sizes.all_channels()}, kOperator, "states");
  }
};

void forward(const Tensor& u, const Tensor& x_dbl, const Tensor& dt_weight, const Tensor& A, const Tensor& D,
             const Tensor& delta_bias, const Tensor& z, const Tensor& scanned, const Tensor& y,
             const std::optional<Tensor>& states, i64 chunk, i64 block, i64 reverse, double scale) {
  Call call(u, x_dbl, dt_weight, A, D, delta_bias, z, chunk, block, reverse, scale);
  InnerForwardArgs args;
  args.states = states ? call.kept(*states) : nullptr;
  args.sizes = call.sizes;
  args.in = call.in;
  args.scanned = dense_floats(scanned, call.tokens(), kOperator, "scanned");
  args.y = dense_floats(y, call.tokens(), kOperator, "y");
  const InnerKernels& isa = VMAMBA_KERNELS(mamba_inner);
  parallel(args.sizes.work(), args.sizes.tasks(), [&](i64 begin, i64 end) { isa.forward(args, begin, end); });
}

void backward(const Tensor& dout, const Tensor& u, const Tensor& x_dbl, const Tensor& dt_weight, const Tensor& A,
              const Tensor& D, const Tensor& delta_bias, const Tensor& z, const Tensor& scanned, const Tensor& states,
              const Tensor& dz, const Tensor& du, const Tensor& dx_dbl, const Tensor& weights, i64 chunk, i64 block,
              i64 reverse, double scale) {
  Call call(u, x_dbl, dt_weight, A, D, delta_bias, z, chunk, block, reverse, scale);
  InnerBackwardArgs args;
  args.states = call.kept(states);
  InnerSizes& s = args.sizes = call.sizes;
  args.in = call.in;
  STD_TORCH_CHECK(dx_dbl.dim() == 4 && weights.dim() == 4 && dx_dbl.size(0) > 0 && dx_dbl.size(0) <= s.blocks() &&
                      weights.size(0) > 0 && weights.size(0) <= s.batch,
                  "mamba_inner on cpu: expected dx_dbl [block groups, B, L, J], weights [batch groups, G, R+N+2, E]");
  s.block_groups = dx_dbl.size(0);
  s.batch_groups = weights.size(0);
  args.dout = token_rows(dout, s, "dout");
  args.scanned = dense_floats(scanned, call.tokens(), kOperator, "scanned");
  args.dz = token_rows(dz, s, "dz");
  args.du = dense_floats(du, {s.batch, s.length, s.all_channels()}, kOperator, "du");
  args.dx_dbl = dense_floats(dx_dbl, {s.block_groups, s.batch, s.length, s.row()}, kOperator, "dx_dbl");
  args.weights = dense_floats(weights, {s.batch_groups, s.directions, s.weights(), s.channels}, kOperator, "weights");
  const auto dy = scratch(s.batch * s.length * s.channels);
  args.dy = dy.get();
  const InnerKernels& isa = VMAMBA_KERNELS(mamba_inner);
  parallel(s.work(), s.batch * s.length, [&](i64 begin, i64 end) { isa.gate_backward(args, begin, end); });
  parallel(s.work(), s.backward_tasks(), [&](i64 begin, i64 end) { isa.backward(args, begin, end); });
}

}  // namespace
}  // namespace vmamba

STABLE_TORCH_LIBRARY_IMPL(vmamba, CPU, m) {
  m.impl("_mamba_inner_scan", TORCH_BOX(&vmamba::forward));
  m.impl("_mamba_inner_scan_backward", TORCH_BOX(&vmamba::backward));
}
