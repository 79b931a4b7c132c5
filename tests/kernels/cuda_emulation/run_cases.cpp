// Runs selective scans through the emulated CUDA kernels: reads cases from one file, writes their results to another.
//
// A case is 64-bit integers (struct Sizes), then its tensors as {bytes, offset, data}; see `write_case` in
// test_cuda_emulated.py. Every tensor gets memory of its exact size, so that AddressSanitizer sees what lies outside.
#include "case_files.h"
#include "scan_run.h"

using namespace vmamba::cuda;
using namespace vmamba::emulation;

namespace {

struct Sizes {
  i64 type, batch, groups, group_channels, delta_channels, states, length, softplus, out_f32, dout_f32, segments, atomics;
  i64 u[3], delta[3], dout[3], B[4], C[4];  // strides in elements
};

Sequence sequence(const Memory& memory, const i64 (&strides)[3], int element) {
  Sequence s{memory.data, strides[0] * element, strides[1] * element, strides[2] * element, 0, false};
  s.channel_last = strides[1] == 1 && strides[2] != 1;
  return s;
}

Projection projection(const Memory& memory, const i64 (&strides)[4], int element) {
  return {memory.data, strides[0] * element, strides[1] * element, strides[2] * element, strides[3] * element};
}

// A new dense sequence in the layout of another.
Sequence dense_like(const Sequence& like, const Memory& memory, i64 channels, i64 length, int element) {
  if (like.channel_last) return {memory.data, length * channels * element, element, channels * element, 0, true};
  return {memory.data, length * channels * element, length * element, element, 0, false};
}

bool run_case() {
  Sizes z;
  if (std::fread(&z, 1, sizeof z, input) != sizeof z) return false;
  const Type type = Type(z.type);
  const int element = type == Type::f32 ? 4 : 2;
  const Memory u = read_tensor(), delta = read_tensor(), A = read_tensor(), B = read_tensor(), C = read_tensor(),
               D = read_tensor(), bias = read_tensor(), dout = read_tensor(), dlast = read_tensor();

  Scan p;
  p.batch = z.batch, p.length = z.length, p.groups = int(z.groups), p.group_channels = int(z.group_channels);
  p.states = int(z.states), p.softplus = z.softplus != 0;
  p.delta_ratio = int(z.groups * z.group_channels / z.delta_channels);
  p.A = A.floats(), p.D = D.floats(), p.delta_bias = bias.floats();
  const i64 KD = p.channels();
  const bool shared = p.delta_ratio > 1;
  p.u = sequence(u, z.u, element);
  p.delta = sequence(delta, z.delta, element);
  p.u.piece = piece_of(p, p.u, KD, element, false);
  p.delta.piece = piece_of(p, p.delta, z.delta_channels, element, shared);
  p.B = projection(B, z.B, element);
  p.C = projection(C, z.C, element);
  Queue queue;
  machine().atomics = p.atomics = z.atomics != 0;
  plan(p, 1, int(z.segments));

  const i64 sequence_bytes = z.batch * KD * z.length;
  const i64 chunks = ceil_div(z.length, kChunk) - 1;
  const int out_element = z.out_f32 ? 4 : element;
  const Memory out(sequence_bytes * out_element), last(z.batch * KD * z.states * 4), stored(z.batch * chunks * z.states * KD * 4);
  Forward f;
  f.scan = p;
  f.out = dense_like(p.u, out, KD, z.length, out_element);
  f.out.piece = piece_of(p, f.out, KD, out_element, false);
  f.out_f32 = z.out_f32 != 0;
  f.stored = chunks;
  f.last_state = last.floats();
  f.stored_states = stored.floats();
  {
    const Memory scratch(forward_floats(p) * 4);
    forward(type, f, scratch.floats(), queue);
  }
  write(out), write(last), write(stored);

  const i64 projections = z.batch * z.groups * z.states * z.length * element;
  const Memory du(sequence_bytes * element), ddelta(z.batch * z.delta_channels * z.length * element), dA(KD * z.states * 4),
      dB(projections), dC(projections), dD(D.data ? KD * 4 : 0), dbias(bias.data ? z.delta_channels * 4 : 0);
  Backward b;
  b.scan = p;
  b.dout_f32 = z.dout_f32 != 0;
  const int dout_element = z.dout_f32 ? 4 : element;
  b.dout = sequence(dout, z.dout, dout_element);
  b.dout.piece = piece_of(p, b.dout, KD, dout_element, false);
  b.dlast_state = dlast.floats();
  b.stored = chunks;
  b.stored_states = stored.floats();
  b.du = dense_like(p.u, du, KD, z.length, element);
  b.du.piece = piece_of(p, b.du, KD, element, false);
  b.ddelta = dense_like(p.delta, ddelta, z.delta_channels, z.length, element);
  b.ddelta.piece = piece_of(p, b.ddelta, z.delta_channels, element, shared);
  Reduction r;
  r.ddelta = b.ddelta;
  r.dA = dA.floats();
  r.dD = D.data ? dD.floats() : nullptr;
  r.ddelta_bias = bias.data ? dbias.floats() : nullptr;
  const i64 row = z.length * element;
  r.dB = {dB.data, row * z.states * z.groups, row * z.states, row, element};
  r.dC = {dC.data, row * z.states * z.groups, row * z.states, row, element};
  {
    const Memory scratch(backward_floats(p) * 4);
    backward(type, b, r, scratch.floats(), queue);
  }
  write(du), write(ddelta), write(dA), write(dB), write(dC), write(dD), write(dbias);
  return true;
}

}  // namespace

int main(int count, char** arguments) { vmamba::emulation::run_files(count, arguments, run_case); }
