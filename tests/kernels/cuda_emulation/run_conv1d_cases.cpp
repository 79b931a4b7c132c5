// Runs causal convolutions through the emulated CUDA kernels: reads cases from one file, writes their results to another.
//
// A case is 64-bit integers (struct Sizes), then its tensors; see `write` in test_cuda_emulated_causal_conv1d.py.
#include "case_files.h"
#include "conv1d_run.h"

using namespace vmamba::cuda;
using namespace vmamba::cuda::conv1d;
using namespace vmamba::emulation;

namespace {

struct Sizes {
  i64 type, batch, groups, channels, length, taps, reverse, flip, silu, shared, last;
  i64 x[3], dout[3];  // strides in elements
};

Sequence sequence(const Memory& memory, const i64 (&strides)[3], i64 element, bool last) {
  return {memory.data, strides[0] * element, strides[1] * element, strides[2] * element, 0, last};
}

Sequence dense(const Memory& memory, i64 channels, i64 length, i64 element, bool last) {
  if (last) return {memory.data, length * channels * element, element, channels * element, 0, true};
  return {memory.data, length * channels * element, length * element, element, 0, false};
}

bool run_case() {
  Sizes z;
  if (std::fread(&z, 1, sizeof z, input) != sizeof z) return false;
  const Type type = Type(z.type);
  const i64 element = type == Type::f32 ? 4 : 2;
  const bool last = z.last != 0;
  const Memory x = read_tensor(), weight = read_tensor(), bias = read_tensor(), dout = read_tensor();

  Conv p;
  p.batch = z.batch, p.length = z.length, p.groups = int(z.groups), p.channels = int(z.channels), p.taps = int(z.taps);
  p.reverse = std::uint64_t(z.reverse), p.flip = z.flip != 0, p.silu = z.silu != 0, p.shared = z.shared != 0;
  p.x = sequence(x, z.x, element, last);
  p.weight = weight.floats(), p.bias = bias.floats();
  const i64 outputs = z.groups * z.channels, inputs = p.shared ? z.channels : outputs;
  const Queue queue;

  const Memory out(z.batch * outputs * z.length * element);
  forward(type, Forward{p, dense(out, outputs, z.length, element, last)}, queue);
  write(out);

  const Memory dx(z.batch * inputs * z.length * element), dweight(outputs * z.taps * 4), dbias(bias.data ? outputs * 4 : 0);
  const Memory partial(z.batch * pieces_of(p) * outputs * (z.taps + 1) * 4);
  Backward b;
  b.conv = p;
  b.dout = sequence(dout, z.dout, element, last);
  b.dx = dense(dx, inputs, z.length, element, last);
  b.partial = partial.floats();
  Reduction r;
  r.dweight = dweight.floats();
  r.dbias = bias.data ? dbias.floats() : nullptr;
  backward(type, b, r, queue);
  write(dx), write(dweight), write(dbias);
  return true;
}

}  // namespace

int main(int count, char** arguments) { run_files(count, arguments, run_case); }
