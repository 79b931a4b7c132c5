// Runs the pooled scan through the emulated CUDA kernels: reads cases from one file, writes their results to another.
//
// A case is 64-bit integers (struct Sizes), then its tensors; see `Case.write` in test_cuda_pooled_emulated.py.
#include "case_files.h"
#include "pooled_run.h"
#include "scan_entry_definitions.h"

using namespace vmamba::cuda;
using namespace vmamba::emulation;

namespace {

struct Sizes {
  i64 type, batch, groups, channels, delta_channels, states, outer, pool1, inner, pool2, reverse, softplus, average,
      y_f32, processors;
  i64 u_full[4], y[3], u[3], delta[3], B[4], C[4];  // strides in elements; gradients lie as their tensors do
};

Sequence sequence(const Memory& memory, const i64 (&strides)[3], int element) {
  return {memory.data, strides[0] * element, strides[1] * element, strides[2] * element, 0, true};
}

Projection projection(const Memory& memory, const i64 (&strides)[4], int element) {
  return {memory.data, strides[0] * element, strides[1] * element, strides[2] * element, strides[3] * element};
}

Image image(const Pooled& p, const Memory& memory, const i64 (&strides)[4], int element) {
  Image x{memory.data, strides[0] * element, strides[1] * element, strides[2] * element, strides[3] * element};
  x.piece = image_piece(p, x);
  return x;
}

Image image(const Pooled& p, const Memory& memory, const i64 (&strides)[3], int element) {
  const i64 apart[4] = {strides[0], p.channels * strides[1], strides[1], strides[2]};
  return image(p, memory, apart, element);
}

bool run_case() {
  Sizes z;
  if (std::fread(&z, 1, sizeof z, input) != sizeof z) return false;
  const Type type = Type(z.type);
  const int element = element_of(type), y_element = z.y_f32 ? 4 : element;
  const Memory u_full = read_tensor(), u = read_tensor(), delta = read_tensor(), A = read_tensor(), B = read_tensor(),
               C = read_tensor(), D = read_tensor(), bias = read_tensor(), dy = read_tensor();
  Queue queue;
  queue.processors = int(z.processors);
  const i64 steps = z.outer * z.inner, tokens = steps * z.pool1 * z.pool2, KD = z.groups * z.channels;

  Pooled p;
  p.batch = z.batch, p.tokens = int(tokens), p.steps = int(steps);
  p.inner = int(z.inner), p.pool1 = int(z.pool1), p.pool2 = int(z.pool2);
  p.groups = int(z.groups), p.added = z.average ? int(z.groups) : 1, p.channels = int(z.channels);
  p.channel_last = z.u_full[2] == 1 && z.u_full[3] != 1;
  PooledInputs in;
  in.type = type, in.reverse = unsigned(z.reverse);
  Scan& s = in.scan;
  s.batch = z.batch, s.length = steps, s.groups = int(z.groups), s.group_channels = int(z.channels);
  s.states = int(z.states), s.delta_ratio = int(KD / z.delta_channels), s.softplus = z.softplus != 0;
  s.u = sequence(u, z.u, element);
  s.delta = sequence(delta, z.delta, element);
  s.B = projection(B, z.B, element);
  s.C = projection(C, z.C, element);
  s.A = A.floats(), s.delta_bias = bias.floats();

  const i64 width = KD / p.added, kept = kept_states(s);
  const Memory y(z.batch * width * tokens * y_element), states(z.groups * z.batch * kept * z.states * z.channels * 4),
      steps_out(z.batch * steps * KD * 4);
  Expand e;
  e.pooled = p;
  e.u = image(p, u_full, z.u_full, element);
  e.z = steps_out.floats();
  e.D = D.floats();
  if (e.D) e.D_piece = weights_piece(p, e.D);
  e.y = image(p, y, z.y, y_element);
  {
    const Memory scratch(pooled_forward_floats(in, queue) * 4);
    scan_groups(in, steps_out.floats(), states.floats(), scratch.floats(), queue);
  }
  expand(type, z.y_f32 != 0, e, queue);
  write(y);

  const i64 projections = z.batch * z.groups * z.states * steps * element;
  const Memory du_full(D.data ? u_full.bytes : 0), du(u.bytes), ddelta(delta.bytes), dA(KD * z.states * 4),
      dB(projections), dC(projections), dD(D.data ? KD * 4 : 0), dbias(bias.data ? z.delta_channels * 4 : 0),
      dz(z.batch * steps * width * 4), dD_parts(skip_rows(type, p, queue) * KD * 4);
  Gather g;
  g.pooled = p;
  g.dy = image(p, dy, z.y, y_element);
  g.u = e.u;
  g.D = e.D, g.D_piece = e.D_piece;
  if (g.D) g.du = image(p, du_full, z.u_full, element);
  g.dz = dz.floats();
  g.dD = dD_parts.floats();
  gather(type, z.y_f32 != 0, g, dD.floats(), queue);
  PooledGradients to;
  to.dz = dz.floats();
  to.dz_shared = z.average != 0;
  to.states = states.floats();
  to.du = sequence(du, z.u, element);
  to.ddelta = sequence(ddelta, z.delta, element);
  to.dB = projection(dB, z.B, element);
  to.dC = projection(dC, z.C, element);
  to.dA = dA.floats();
  to.ddelta_bias = bias.data ? dbias.floats() : nullptr;
  {
    const Memory scratch(pooled_backward_floats(in, queue) * 4);
    scan_groups_backward(in, to, scratch.floats(), queue);
  }
  write(du_full), write(du), write(ddelta), write(dA), write(dB), write(dC), write(dD), write(dbias);
  return true;
}

}  // namespace

int main(int count, char** arguments) { run_files(count, arguments, run_case); }
