// Runs ss2d through the emulated CUDA kernels: reads cases from one file, writes their results to another.
//
// A case is 64-bit integers (struct Sizes), then its tensors; see `Case.write` in test_cuda_ss2d_emulated.py.
#include "case_files.h"
#include "ss2d_run.h"

using namespace vmamba::cuda;
using namespace vmamba::emulation;

namespace {

struct Sizes {
  i64 type, batch, channels, length, directions, rank, states, out_f32, dout_f32, shared_bytes, processors, atomics;
  i64 x[3], dout[3], x_dbl[3];  // strides in elements; the results lie as x and x_dbl do
};

Image image_of(const Memory& memory, const i64 (&strides)[3], int element) {
  return {memory.data, strides[0] * element, strides[1] * element, unsigned(strides[2] * element)};
}

// Under a sanitizer one type must do: three take three times as long to compile.
template <typename Run>
void of_type(Type type, const Run& run) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  if (type != Type::bf16) fail("only bfloat16 is compiled under a sanitizer");
  run(BFloat16{});
#else
  if (type == Type::f32)
    run(float{});
  else if (type == Type::bf16)
    run(BFloat16{});
  else
    run(Float16{});
#endif
}

template <typename T>
void run_forward(const Ss2dForward& f) {
  const Memory scratch(ss2d_forward_floats(f.ss2d) * 4);
  ss2d_forward_of<T>(f, scratch.floats(), Queue{});
}

template <typename T>
void run_backward(const Ss2dBackward& b, const Ss2dReduction& r) {
  const Memory scratch(ss2d_backward_floats(b) * 4);
  ss2d_backward_of<T>(b, r, scratch.floats(), Queue{});
}

bool run_case() {
  Sizes z;
  if (std::fread(&z, 1, sizeof z, input) != sizeof z) return false;
  const Type type = Type(z.type);
  const int element = type == Type::f32 ? 4 : 2;
  const Memory x = read_tensor(), x_dbl = read_tensor(), dt_weight = read_tensor(), A = read_tensor(), D = read_tensor(),
               bias = read_tensor(), maps = read_tensor(), dout = read_tensor();
  Ss2d p;
  p.batch = z.batch, p.length = z.length, p.directions = int(z.directions), p.channels = int(z.channels);
  p.rank = int(z.rank), p.states = int(z.states);
  p.x = image_of(x, z.x, element);
  p.x_dbl = image_of(x_dbl, z.x_dbl, element);
  p.dt_weight = dt_weight.floats(), p.A = A.floats(), p.D = D.floats(), p.delta_bias = bias.floats();
  p.maps = reinterpret_cast<const unsigned*>(maps.data);
  const i64 KC = z.directions * z.channels, image = z.batch * z.channels * z.length;

  const int out_element = z.out_f32 ? 4 : element;
  const Memory out(image * out_element), stored(z.batch * p.stored() * z.states * KC * 4);
  Ss2dForward f;
  f.ss2d = p;
  bool tallies_shared = false;
  if (!ss2d_plan(f.ss2d, tallies_shared, false, z.shared_bytes, int(z.processors))) fail("the forward does not fit");
  f.out = image_of(out, z.x, out_element);
  f.out_f32 = z.out_f32 != 0;
  f.stored_states = stored.floats();
  of_type(type, [&](auto element_of) { run_forward<decltype(element_of)>(f); });
  write(out), write(stored);

  const Memory dx(image * element), dx_dbl(z.batch * p.row() * z.length * element), dW(KC * z.rank * 4), dA(KC * z.states * 4),
      dD(D.data ? KC * 4 : 0), dbias(bias.data ? KC * 4 : 0);
  Ss2dBackward b;
  b.ss2d = p;
  if (!ss2d_plan(b.ss2d, b.tallies_shared, true, z.shared_bytes, int(z.processors))) fail("the backward does not fit");
  b.groups = ss2d_groups(b.ss2d, int(z.processors));
  machine().atomics = b.atomics = z.atomics != 0;
  b.dout_f32 = z.dout_f32 != 0;
  b.dout = image_of(dout, z.dout, z.dout_f32 ? 4 : element);
  b.dx = image_of(dx, z.x, element);
  b.stored_states = stored.floats();
  Ss2dReduction r;
  r.dx_dbl = image_of(dx_dbl, z.x_dbl, element);
  r.d_dt_weight = dW.floats();
  r.dA = dA.floats();
  r.dD = D.data ? dD.floats() : nullptr;
  r.d_delta_bias = bias.data ? dbias.floats() : nullptr;
  of_type(type, [&](auto element_of) { run_backward<decltype(element_of)>(b, r); });
  write(dx), write(dx_dbl), write(dW), write(dA), write(dD), write(dbias);
  const i64 plans[] = {f.ss2d.width, f.ss2d.threads, f.ss2d.sums_shared, b.ss2d.width, b.ss2d.threads,
                       b.ss2d.sums_shared, b.tallies_shared, b.groups};
  std::fwrite(plans, 1, sizeof plans, output);
  return true;
}

}  // namespace

int main(int count, char** arguments) { run_files(count, arguments, run_case); }
