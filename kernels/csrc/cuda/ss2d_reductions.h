// The second stage of the sums of ss2d that cross thread blocks. The order of every sum is fixed: results do not vary.
#pragma once

#include "ss2d_args.h"

namespace vmamba::cuda {

constexpr int kSs2dReductionThreads = 256;

// dx_dbl from those of the groups of blocks. A thread an element.
template <typename T>
__global__ void __launch_bounds__(kSs2dReductionThreads) ss2d_reduce_rows(const __grid_constant__ Ss2dReduction r) {
  const Ss2d& p = r.ss2d;
  const i64 J = p.row();
  const i64 each = p.length * J;
  const i64 all = p.batch * each;
  const i64 at_once = i64(gridDim.x) * kSs2dReductionThreads;
  for (i64 q = i64(blockIdx.x) * kSs2dReductionThreads + threadIdx.x; q < all; q += at_once) {
    float sum = 0.0f;
    for (int part = 0; part < r.parts; ++part) sum += r.partial_rows[part * all + q];
    *reinterpret_cast<T*>(r.dx_dbl.at(q / each, q % J) + q % each / J * r.dx_dbl.position) = narrow<T>(sum);
  }
}

// The gradients of the weights from those of the images: a block sums 32 columns, 8 threads each.
template <typename T>  // of no account: it makes one copy for each source file
__global__ void __launch_bounds__(kSs2dReductionThreads) ss2d_reduce_weights(const __grid_constant__ Ss2dReduction r) {
  constexpr int kRows = kSs2dReductionThreads / kLanes;
  VMAMBA_SHARED(memory);
  float* sums = reinterpret_cast<float*>(memory);
  const Ss2d& p = r.ss2d;
  const i64 KC = i64(p.directions) * p.channels;
  const i64 columns = (p.rank + p.states + 2) * KC;
  const int lane = threadIdx.x % kLanes;
  const int row = threadIdx.x / kLanes;
  const i64 column = i64(blockIdx.x) * kLanes + lane;
  const int what = int(column / KC) - p.rank;  // from 0: dA; then the bias and D
  // D's gradient is the same in every direction, and was summed in the first.
  const i64 channel = column % KC;
  const i64 from = what == p.states + 1 ? column - channel + channel % p.channels : column;
  float sum = 0.0f;
  if (column < columns) {
    for (i64 batch = row; batch < p.batch; batch += kRows) sum += r.partial_weights[batch * columns + from];
  }
  sums[row * kLanes + lane] = sum;
  __syncthreads();
  if (row > 0 || column >= columns) return;
  for (int i = 1; i < kRows; ++i) sum += sums[i * kLanes + lane];
  if (what < 0) {
    r.d_dt_weight[channel * p.rank + what + p.rank] = sum;
  } else if (what < p.states) {
    r.dA[channel * p.states + what] = sum;
  } else if (what == p.states) {
    if (r.d_delta_bias) r.d_delta_bias[channel] = sum;
  } else if (r.dD) {
    r.dD[channel] = sum;
  }
}

}  // namespace vmamba::cuda
