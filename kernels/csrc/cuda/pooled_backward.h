// The gradients of the expansion: dz, the sum over the tokens of a step; du = D dy; and dD in parts, which add_rows sums
// in a fixed order. Every tensor passes through once.
#pragma once

#include "pooled_forward.h"

namespace vmamba::cuda {

// Channels side by side: a thread owns a vector of channels and walks through the tokens of its steps.
template <typename T, typename G, int kAdded>
__global__ void __launch_bounds__(kPooledThreads, 1) gather_rows(const __grid_constant__ Gather g) {
  constexpr int kCount = kVector<T>;
  const Pooled& p = g.pooled;
  const int vectors = (p.channels + kCount - 1) / kCount;
  const i64 q = i64(blockIdx.x) * kPooledThreads + threadIdx.x;
  const i64 rest = q / vectors;
  const int c = int(q % vectors) * kCount;
  const int split = int(rest % p.splits);
  const i64 image = rest / p.splits;
  if (image >= p.images()) return;
  const int first = int(image % (p.groups / kAdded));
  const i64 batch = image / (p.groups / kAdded);
  const int valid = min(p.channels - c, kCount);
  const int piece = p.channels % 4 == 0 ? 16 : 4;  // of float32 rows of D or KD
  const i64 channel0 = i64(first) * p.channels + c;
  const i64 width = i64(p.groups / kAdded) * p.channels;

  float D[kAdded][kCount], dD[kAdded][kCount];
#pragma unroll
  for (int k = 0; k < kAdded; ++k) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) D[k][i] = dD[k][i] = 0.0f;
    if (g.D)
      read_vector<float>(reinterpret_cast<const char*>(g.D + channel0 + i64(k) * p.channels), g.D_piece, valid, D[k]);
  }
  const int last = int(i64(split + 1) * p.steps / p.splits);
  for (int step = int(i64(split) * p.steps / p.splits); step < last; ++step) {
    float dz[kCount];
#pragma unroll
    for (int j = 0; j < kCount; ++j) dz[j] = 0.0f;
    TokensOfStep walk(p, step, 0);
#pragma unroll 2
    for (int i = 0; i < p.pool(); ++i, walk.next()) {
      const int l = walk.token;
      float dy[kCount];
      read_vector<G>(g.dy.at(batch, first, c, l), g.dy.piece, valid, dy);
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        dy[j] *= 1.0f / kAdded;
        dz[j] += dy[j];
      }
      if (!g.D) continue;
#pragma unroll
      for (int k = 0; k < kAdded; ++k) {
        float u[kCount];
        read_vector<T>(g.u.at(batch, first + k, c, l), g.u.piece, valid, u);
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          dD[k][j] = fmaf(dy[j], u[j], dD[k][j]);
          u[j] = dy[j] * D[k][j];
        }
        write_vector<T>(g.du.at(batch, first + k, c, l), g.du.piece, valid, u);
      }
    }
    write_vector<float>(reinterpret_cast<char*>(g.dz + (batch * p.steps + step) * width + channel0), piece, valid, dz);
  }
  if (!g.D) return;
#pragma unroll
  for (int k = 0; k < kAdded; ++k)
    write_vector<float>(reinterpret_cast<char*>(g.dD + (batch * p.splits + split) * p.all_channels() + channel0 +
                                                i64(k) * p.channels),
                        piece, valid, dD[k]);
}

// Tokens side by side: a warp owns a channel, a lane every 32nd of its steps.
template <typename T, typename G, int kAdded>
__global__ void __launch_bounds__(kPooledThreads, 1) gather_columns(const __grid_constant__ Gather g) {
  const Pooled& p = g.pooled;
  const int lane = threadIdx.x % kLanes;
  const i64 q = (i64(blockIdx.x) * kPooledThreads + threadIdx.x) / kLanes;
  const int c = int(q % p.channels);
  const i64 image = q / p.channels;
  if (image >= p.images()) return;
  const int first = int(image % (p.groups / kAdded));
  const i64 batch = image / (p.groups / kAdded);
  const i64 channel0 = i64(first) * p.channels + c;
  const i64 width = i64(p.groups / kAdded) * p.channels;

  float D[kAdded], dD[kAdded];
#pragma unroll
  for (int k = 0; k < kAdded; ++k) {
    D[k] = g.D ? g.D[channel0 + i64(k) * p.channels] : 0.0f;
    dD[k] = 0.0f;
  }
  for (int step = lane; step < p.steps; step += kLanes) {
    float dz = 0.0f;
    TokensOfStep walk(p, step, 0);
#pragma unroll 4
    for (int i = 0; i < p.pool(); ++i, walk.next()) {
      const int l = walk.token;
      const float dy = widen(*reinterpret_cast<const G*>(g.dy.at(batch, first, c, l))) * (1.0f / kAdded);
      dz += dy;
      if (!g.D) continue;
#pragma unroll
      for (int k = 0; k < kAdded; ++k) {
        const float u = widen(*reinterpret_cast<const T*>(g.u.at(batch, first + k, c, l)));
        dD[k] = fmaf(dy, u, dD[k]);
        *reinterpret_cast<T*>(g.du.at(batch, first + k, c, l)) = narrow<T>(dy * D[k]);
      }
    }
    g.dz[(batch * p.steps + step) * width + channel0] = dz;
  }
  if (!g.D) return;
#pragma unroll
  for (int k = 0; k < kAdded; ++k) {
#pragma unroll
    for (int bit = 1; bit < kLanes; bit *= 2) dD[k] += __shfl_xor_sync(kAllLanes, dD[k], bit);
    if (lane == 0) g.dD[batch * p.all_channels() + channel0 + i64(k) * p.channels] = dD[k];
  }
}

constexpr int kRowThreads = 256;

// Sums of rows: a block takes 32 columns, 8 threads each.
__global__ void __launch_bounds__(kRowThreads) add_rows(const __grid_constant__ Rows r) {
  constexpr int kParts = kRowThreads / kLanes;
  VMAMBA_SHARED(shared);
  float* sums = reinterpret_cast<float*>(shared);
  const int lane = threadIdx.x % kLanes;
  const int part = threadIdx.x / kLanes;
  const i64 column = i64(blockIdx.x) * kLanes + lane;
  float sum = 0.0f;
  if (column < r.columns)
    for (i64 row = part; row < r.rows; row += kParts) sum += r.from[row * r.columns + column];
  sums[part * kLanes + lane] = sum;
#ifndef VMAMBA_PLANTED_RACE
  __syncthreads();
#endif
  if (part > 0 || column >= r.columns) return;
  for (int i = 1; i < kParts; ++i) sum += sums[i * kLanes + lane];
  r.to[column] = sum;
}

}  // namespace vmamba::cuda
