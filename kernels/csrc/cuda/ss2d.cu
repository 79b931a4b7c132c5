// vmamba::_ss2d_sequences and its backward on CUDA tensors: checks, allocation, launches on PyTorch's current stream.

#include "ss2d_run.h"
#include "tensors.h"

namespace vmamba::cuda {

// The other types are compiled in files of their own.
#define VMAMBA_ELSEWHERE(T)                                                      \
  extern template void ss2d_forward_of<T>(Ss2dForward, float*, const Queue&); \
  extern template void ss2d_backward_of<T>(Ss2dBackward, Ss2dReduction, float*, const Queue&);
VMAMBA_ELSEWHERE(float)
VMAMBA_ELSEWHERE(Float16)
#undef VMAMBA_ELSEWHERE

namespace {

constexpr const char* kOperator = "ss2d on cuda";

Image image_of(const Tensor& t, const char* name) {
  const i64 element = bytes_of(t.scalar_type());
  STD_TORCH_CHECK(t.stride(2) * element < (i64{1} << 32), "ss2d on cuda: the positions of ", name, " lie too far apart");
  return {static_cast<char*>(t.data_ptr()), t.stride(0) * element, t.stride(1) * element,
          static_cast<unsigned>(t.stride(2) * element)};
}

// The arguments that the forward and the backward share; holds those that had to be copied.
struct Call {
  Ss2d ss2d;
  Queue queue;
  Type type;
  bool tallies_shared = false;
  Tensor dt_weight, A;
  std::optional<Tensor> D, delta_bias;

  Call(const Tensor& x, const Tensor& x_dbl, const Tensor& dt_weight_in, const Tensor& A_in,
       const std::optional<Tensor>& D_in, const std::optional<Tensor>& bias_in, const Tensor& maps, i64 chunk,
       bool backward, bool backward_follows = false)
      : queue(queue_of(x, kOperator)),
        type(type_of(x, kOperator, "x")),
        dt_weight(dt_weight_in),
        A(A_in) {
    STD_TORCH_CHECK(x.dim() == 3 && x_dbl.dim() == 3 && dt_weight.dim() == 3 && A.dim() == 2 && maps.dim() == 2,
                    "ss2d on cuda: expected x [B, C, L], x_dbl [B, L, J], dt_weight [K, C, R], A [K*C, N], maps [K, *]");
    Ss2d& p = ss2d;
    const i64 C = x.size(1), K = dt_weight.size(0), R = dt_weight.size(2), N = A.size(1);
    p.batch = x.size(0);
    p.length = x.size(2);
    STD_TORCH_CHECK(C > 0 && K > 0 && R > 0 && p.length > 0 && N > 0 && N <= 256,
                    "ss2d on cuda: expected C, L, K, R >= 1 and 1 <= N <= 256");
    STD_TORCH_CHECK(p.length < kMostBlocks - kMapUnit && K * C < kMostBlocks && K * (R + 2 * N) < kMostBlocks / 4,
                    "ss2d on cuda: too many positions, channels or rows of x_dbl");
    STD_TORCH_CHECK(chunk == kStoredEvery, "ss2d on cuda: states lie ", kStoredEvery, " steps apart, not ", chunk);
    p.directions = int(K);
    p.channels = int(C);
    p.rank = int(R);
    p.states = int(N);
    check_shape(x_dbl, {p.batch, p.length, p.row()}, kOperator, "x_dbl");
    dt_weight = dense(dt_weight_in, {K, C, R}, kOperator, "dt_weight");
    A = dense(A_in, {K * C, N}, kOperator, "A");
    check_shape(maps, {K, p.map_length()}, kOperator, "maps");
    STD_TORCH_CHECK(x_dbl.scalar_type() == x.scalar_type() && x_dbl.is_contiguous(),
                    "ss2d on cuda: x_dbl must be contiguous and of x's type");
    STD_TORCH_CHECK(maps.scalar_type() == ScalarType::Int && maps.is_contiguous(),
                    "ss2d on cuda: maps must be int32 and contiguous");
    p.x = image_of(x, "x");
    p.x_dbl = rows(x_dbl);
    p.dt_weight = floats(dt_weight);
    p.A = floats(A);
    p.maps = static_cast<const unsigned*>(maps.data_ptr());
    D = dense(D_in, {K * C}, kOperator, "D");
    delta_bias = dense(bias_in, {K * C}, kOperator, "delta_bias");
    p.D = floats(D);
    p.delta_bias = floats(delta_bias);
    const i64 shared_bytes = attribute_of(x, cudaDevAttrMaxSharedMemoryPerBlockOptin, kOperator);
    Ss2d later = p;  // a backward that will not fit is refused before the forward has run
    STD_TORCH_CHECK((!backward_follows || ss2d_plan(later, tallies_shared, true, shared_bytes, queue.processors)) &&
                        ss2d_plan(p, tallies_shared, backward, shared_bytes, queue.processors),
                    "ss2d on cuda: N = ", N, " states and R = ", R, " do not fit into the shared memory of this GPU");
    STD_TORCH_CHECK(p.batch * p.blocks() <= kMostBlocks, "ss2d on cuda: too many images for one call");
  }

  // Dense [B, L, J] as the kernels see it, [B, J, L].
  Image rows(const Tensor& t) const {
    const i64 element = bytes_of(t.scalar_type()), row = ss2d.row() * element;
    return {static_cast<char*>(t.data_ptr()), row * ss2d.length, element, static_cast<unsigned>(row)};
  }
};

std::tuple<Tensor, Tensor> run_forward(const Tensor& x, const Tensor& x_dbl, const Tensor& dt_weight, const Tensor& A,
                                       const std::optional<Tensor>& D, const std::optional<Tensor>& delta_bias,
                                       const Tensor& maps, i64 chunk, ScalarType out_dtype, bool save_states) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Call call(x, x_dbl, dt_weight, A, D, delta_bias, maps, chunk, false, save_states);
  const Ss2d& p = call.ss2d;
  STD_TORCH_CHECK(out_dtype == ScalarType::Float || out_dtype == x.scalar_type(),
                  "ss2d on cuda: the output must be float32 or of x's type");
  Tensor out = allocate_sequence(x, p.channels, p.length, true, out_dtype);
  Tensor states = allocate(x, {p.batch, save_states ? p.stored() : 0, p.states, i64(p.directions) * p.channels});
  if (p.batch == 0) return {out, states};
  Ss2dForward f;
  f.ss2d = p;
  f.out = image_of(out, "the output");
  f.out_f32 = out_dtype == ScalarType::Float;
  f.stored_states = room(states);
  const Tensor scratch = allocate(x, {ss2d_forward_floats(p)});
  guarded([&] {
    if (call.type == Type::f32)
      ss2d_forward_of<float>(f, room(scratch), call.queue);
    else if (call.type == Type::bf16)
      ss2d_forward_of<BFloat16>(f, room(scratch), call.queue);
    else
      ss2d_forward_of<Float16>(f, room(scratch), call.queue);
  });
  return {out, states};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> run_backward(
    const Tensor& dout, const Tensor& x, const Tensor& x_dbl, const Tensor& dt_weight, const Tensor& A,
    const std::optional<Tensor>& D, const std::optional<Tensor>& delta_bias, const Tensor& maps,
    const Tensor& states_in, i64 chunk) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Call call(x, x_dbl, dt_weight, A, D, delta_bias, maps, chunk, true);
  const Ss2d& p = call.ss2d;
  const i64 KC = i64(p.directions) * p.channels;
  check_shape(dout, {p.batch, p.channels, p.length}, kOperator, "dout");
  STD_TORCH_CHECK(dout.scalar_type() == ScalarType::Float || dout.scalar_type() == x.scalar_type(),
                  "ss2d on cuda: dout must be float32 or of x's type");
  const Tensor states = dense(states_in, {p.batch, p.stored(), p.states, KC}, kOperator, "states");
  Tensor dx = allocate_sequence(x, p.channels, p.length, true, x.scalar_type());
  Tensor dx_dbl = allocate(x, {p.batch, p.length, p.row()}, x.scalar_type());
  Tensor d_dt_weight = allocate(x, {p.directions, p.channels, p.rank});
  Tensor dA = allocate(x, {KC, p.states});
  Tensor dD = allocate(x, {D ? KC : 0});
  Tensor dbias = allocate(x, {delta_bias ? KC : 0});
  if (p.batch == 0) {
    for (Tensor* t : {&d_dt_weight, &dA, &dD, &dbias}) torch::stable::zero_(*t);
    return {dx, dx_dbl, d_dt_weight, dA, dD, dbias};
  }
  Ss2dBackward b;
  b.ss2d = p;
  b.tallies_shared = call.tallies_shared;
  b.groups = ss2d_groups(p, call.queue.processors);
  b.atomics = b.groups > 1 && atomics_wanted();
  b.dout = image_of(dout, "dout");
  b.dout_f32 = dout.scalar_type() == ScalarType::Float;
  b.dx = image_of(dx, "dx");
  b.stored_states = floats(states);
  Ss2dReduction r;
  r.dx_dbl = call.rows(dx_dbl);
  r.d_dt_weight = room(d_dt_weight);
  r.dA = room(dA);
  r.dD = room(dD);
  r.d_delta_bias = room(dbias);
  const Tensor scratch = allocate(x, {ss2d_backward_floats(b)});
  guarded([&] {
    if (call.type == Type::f32)
      ss2d_backward_of<float>(b, r, room(scratch), call.queue);
    else if (call.type == Type::bf16)
      ss2d_backward_of<BFloat16>(b, r, room(scratch), call.queue);
    else
      ss2d_backward_of<Float16>(b, r, room(scratch), call.queue);
  });
  return {dx, dx_dbl, d_dt_weight, dA, dD, dbias};
}

}  // namespace
}  // namespace vmamba::cuda

STABLE_TORCH_LIBRARY_IMPL(vmamba, CUDA, m) {
  m.impl("_ss2d_sequences", TORCH_BOX(&vmamba::cuda::run_forward));
  m.impl("_ss2d_sequences_backward", TORCH_BOX(&vmamba::cuda::run_backward));
}
