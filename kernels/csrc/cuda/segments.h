// Time cut into segments that run in parallel: a segment turns the state h that enters it into exp(A * times) h + ends.
#pragma once

#include "scan_args.h"
#include "softplus.h"

namespace vmamba::cuda {

// What enters each segment, from the first to the last (backward: from the last to the first). A thread a state.
__global__ void __launch_bounds__(kMostThreads) join_segments(const __grid_constant__ Joining j) {
  const Scan& p = j.scan;
  const i64 KD = p.channels();
  const unsigned blocks = unsigned(join_blocks(p));
  const i64 batch = blockIdx.x / blocks;
  const i64 q = i64(blockIdx.x % blocks) * kMostThreads + threadIdx.x;  // of [N, KD]
  if (q >= KD * p.states) return;
  const i64 channel = q % KD;
  const float A2 = kLog2e * p.A[channel * p.states + q / KD];
  float h = j.dlast_state ? j.dlast_state[(batch * KD + channel) * p.states + q / KD] : 0.0f;
  for (int i = 0; i < p.segments; ++i) {
    const i64 pass = batch * p.segments + (j.backward ? p.segments - 1 - i : i);
    j.running[pass * p.states * KD + q] = h;
    if (i + 1 < p.segments) h = fmaf(exp2_fast(j.times[pass * KD + channel] * A2), h, j.ends[pass * p.states * KD + q]);
  }
}

// How each segment but the first transforms the gradient of the state that enters from the right. For small problems,
// whose inputs lie in the cache: they are read where they are.
template <typename T>
__global__ void __launch_bounds__(kMostThreads) gradient_ends(const __grid_constant__ Backward b) {
  const Scan& p = b.scan;
  const Place at = locate(p);
  const i64 KD = p.channels();
  if (!at.exists || at.segment == 0) return;
  const float bias = p.delta_bias ? p.delta_bias[at.channel / p.delta_ratio] : 0.0f;
  const char* delta = p.delta.at(at.batch, at.channel / p.delta_ratio, 0);
  const char* dout = b.dout.at(at.batch, at.channel, 0);
  constexpr int kStates = 4;
#pragma unroll 1
  for (int n0 = 0; n0 < p.states; n0 += kStates) {
    const char* C = p.C.data + at.batch * p.C.batch + at.group * p.C.group + n0 * p.C.state;
    float A2[kStates], carry[kStates], time_sum = 0.0f;
    for (int j = 0; j < kStates; ++j) {
      A2[j] = n0 + j < p.states ? kLog2e * p.A[i64(at.channel) * p.states + n0 + j] : 0.0f;
      carry[j] = 0.0f;
    }
#pragma unroll 2
    for (i64 t = at.stop - 1; t >= at.start; --t) {
      float dt = widen(*reinterpret_cast<const T*>(delta + t * p.delta.time)) + bias;
      if (p.softplus) dt = softplus(dt, softplus_exponential(dt));
      const float dy = b.dout_f32 ? *reinterpret_cast<const float*>(dout + t * b.dout.time)
                                  : widen(*reinterpret_cast<const T*>(dout + t * b.dout.time));
      time_sum += dt;
#pragma unroll
      for (int j = 0; j < kStates; ++j) {
        const float c = n0 + j < p.states ? widen(*reinterpret_cast<const T*>(C + j * p.C.state + t * p.C.time)) : 0.0f;
        carry[j] = exp2_fast(dt * A2[j]) * fmaf(c, dy, carry[j]);
      }
    }
    for (int j = 0; j < kStates; ++j)
      if (n0 + j < p.states) b.ends[(at.pass * p.states + n0 + j) * KD + at.channel] = carry[j];
    b.times[at.pass * KD + at.channel] = time_sum;
  }
}

}  // namespace vmamba::cuda
