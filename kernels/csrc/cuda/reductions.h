// The second stage of the sums that cross thread blocks. The order of every sum is fixed: results do not vary.
#pragma once

#include "scan_args.h"

namespace vmamba::cuda {

constexpr int kReductionThreads = 256;

// dB and dC from those of each block of channels. A row of blocks takes one state of one group of B or of C, a thread
// one time step.
template <typename T>
__global__ void __launch_bounds__(kReductionThreads) reduce_projections(const __grid_constant__ Reduction r) {
  const Scan& p = r.scan;
  const unsigned rows = unsigned(p.batch) * p.groups * p.states;
  const bool is_C = blockIdx.x >= rows;
  const unsigned row = is_C ? blockIdx.x - rows : blockIdx.x;
  const unsigned pair = row / p.states;  // batch and group
  const unsigned n = row % p.states;
  const i64 t = i64(blockIdx.y) * blockDim.x + threadIdx.x;
  if (t >= p.length) return;
  const i64 stride = i64(p.states) * p.length;
  const int parts = p.parts();
  const float* from = r.partial_BC + ((is_C ? p.batch * p.groups : 0) + pair) * parts * stride + n * p.length + t;
  float sum = 0.0f;
  for (int k = 0; k < parts; ++k) sum += from[k * stride];
  const Projection& to = is_C ? r.dC : r.dB;
  char* target = const_cast<char*>(to.data) + pair / p.groups * to.batch + pair % p.groups * to.group + n * to.state +
                 t * to.time;
  *reinterpret_cast<T*>(target) = narrow<T>(sum);
}

// dA, dD and the gradient of the bias from those of each batch and segment: a block sums 32 columns, 8 threads each.
__global__ void __launch_bounds__(kReductionThreads) reduce_weights(const __grid_constant__ Reduction r) {
  constexpr int kRows = kReductionThreads / kLanes;
  VMAMBA_SHARED(shared);
  float* sums = reinterpret_cast<float*>(shared);
  const Scan& p = r.scan;
  const i64 KD = p.channels();
  const i64 passes = p.batch * p.segments;
  const int lane = threadIdx.x % kLanes;
  const int row = threadIdx.x / kLanes;
  const i64 column = i64(blockIdx.x) * kLanes + lane;
  const i64 skips = KD * p.states;
  const i64 biases = skips + KD;
  const bool is_bias = column >= biases;
  const bool exists = column < biases + KD / p.delta_ratio;
  const i64 first = is_bias ? biases + (column - biases) * p.delta_ratio : column;
  const int columns = is_bias ? p.delta_ratio : 1;
  float sum = 0.0f;
  if (exists) {
    for (i64 pass = row; pass < passes; pass += kRows)
      for (int i = 0; i < columns; ++i) sum += r.partial_sums[pass * (p.states + 2) * KD + first + i];
  }
  sums[row * kLanes + lane] = sum;
  __syncthreads();
  if (row > 0 || !exists) return;
  for (int i = 1; i < kRows; ++i) sum += sums[i * kLanes + lane];
  if (is_bias) {
    if (r.ddelta_bias) r.ddelta_bias[column - biases] = sum;
  } else if (column >= skips) {
    if (r.dD) r.dD[column - skips] = sum;
  } else {
    r.dA[column % KD * p.states + column / KD] = sum;
  }
}

// ddelta where several channels of u share one of delta.
template <typename T>
__global__ void __launch_bounds__(kReductionThreads) reduce_delta(const __grid_constant__ Reduction r) {
  const Scan& p = r.scan;
  const i64 channels = p.channels() / p.delta_ratio;
  const i64 all = p.batch * p.length * channels;
  for (i64 q = i64(blockIdx.x) * kReductionThreads + threadIdx.x; q < all; q += i64(gridDim.x) * kReductionThreads) {
    const i64 c = q % channels;
    const i64 t = q / channels % p.length;
    const i64 batch = q / channels / p.length;
    const float* from = r.ddelta_apart + q * p.delta_ratio;
    float sum = 0.0f;
    for (int i = 0; i < p.delta_ratio; ++i) sum += from[i];
    *reinterpret_cast<T*>(r.ddelta.at(batch, c, t)) = narrow<T>(sum);
  }
}

}  // namespace vmamba::cuda
