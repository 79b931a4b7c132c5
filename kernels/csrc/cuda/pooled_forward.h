// The expansion of the pooled scan: y = the mean over the groups of z of each token's step + D u. Every tensor passes
// through once.
#pragma once

#include "pooled_vectors.h"

namespace vmamba::cuda {

// Where no number of blocks is named, the compiler spills to fit more of them on a multiprocessor.
constexpr int kPooledThreads = 128;

// Channels side by side: a thread owns a vector of channels of one step and walks through its tokens, so that z and D
// are read once for all of them.
template <typename T, typename O, int kAdded>
__global__ void __launch_bounds__(kPooledThreads, 1) expand_rows(const __grid_constant__ Expand e) {
  constexpr int kCount = kVector<T>;
  const Pooled& p = e.pooled;
  const int vectors = (p.channels + kCount - 1) / kCount;
  const i64 q = i64(blockIdx.x) * kPooledThreads + threadIdx.x;
  const i64 rest = q / vectors;
  const int c = int(q % vectors) * kCount;
  const int split = int(rest % p.splits);
  const int step = int(rest / p.splits % p.steps);
  const i64 image = rest / p.splits / p.steps;
  if (image >= p.images()) return;
  const int first = int(image % (p.groups / kAdded));
  const i64 batch = image / (p.groups / kAdded);
  const int valid = min(p.channels - c, kCount);
  const int piece = p.channels % 4 == 0 ? 16 : 4;  // of float32 rows of KD

  float base[kCount], D[kAdded][kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) base[i] = 0.0f;
#pragma unroll
  for (int k = 0; k < kAdded; ++k) {
    const i64 channel = i64(first + k) * p.channels + c;
    float z[kCount];
    read_vector<float>(reinterpret_cast<const char*>(e.z + (batch * p.steps + step) * p.all_channels() + channel), piece,
                       valid, z);
#pragma unroll
    for (int i = 0; i < kCount; ++i) base[i] += z[i], D[k][i] = 0.0f;
    if (e.D) read_vector<float>(reinterpret_cast<const char*>(e.D + channel), e.D_piece, valid, D[k]);
  }

  const int start = int(i64(split) * p.pool() / p.splits);
  const int stop = int(i64(split + 1) * p.pool() / p.splits);
  TokensOfStep walk(p, step, start);
#pragma unroll 2
  for (int i = start; i < stop; ++i, walk.next()) {
    const int l = walk.token;
    float sum[kCount];
#pragma unroll
    for (int j = 0; j < kCount; ++j) sum[j] = base[j];
    if (e.D) {
#pragma unroll
      for (int k = 0; k < kAdded; ++k) {
        float u[kCount];
        read_vector<T>(e.u.at(batch, first + k, c, l), e.u.piece, valid, u);
#pragma unroll
        for (int j = 0; j < kCount; ++j) sum[j] = fmaf(D[k][j], u[j], sum[j]);
      }
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) sum[j] *= 1.0f / kAdded;
    write_vector<O>(e.y.at(batch, first, c, l), e.y.piece, valid, sum);
  }
}

// Tokens side by side: a thread owns a vector of tokens of one channel.
template <typename T, typename O, int kAdded>
__global__ void __launch_bounds__(kPooledThreads, 1) expand_columns(const __grid_constant__ Expand e) {
  constexpr int kCount = kVector<T>;
  const Pooled& p = e.pooled;
  const int vectors = (p.tokens + kCount - 1) / kCount;
  const i64 q = i64(blockIdx.x) * kPooledThreads + threadIdx.x;
  const i64 rest = q / vectors;
  const int l = int(q % vectors) * kCount;
  const int c = int(rest % p.channels);
  const i64 image = rest / p.channels;
  if (image >= p.images()) return;
  const int first = int(image % (p.groups / kAdded));
  const i64 batch = image / (p.groups / kAdded);
  const int valid = min(p.tokens - l, kCount);

  float sum[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum[i] = 0.0f;
#pragma unroll
  for (int k = 0; k < kAdded; ++k) {
    const i64 channel = i64(first + k) * p.channels + c;
    const float* z = e.z + batch * p.steps * p.all_channels() + channel;
    float u[kCount];
    float D = 0.0f;
    if (e.D) {
      D = e.D[channel];
      read_vector<T>(e.u.at(batch, first + k, c, l), e.u.piece, valid, u);
    }
    StepsOfTokens walk(p, l);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < valid) sum[i] += z[walk.step(p) * p.all_channels()];
      if (e.D) sum[i] = fmaf(D, u[i], sum[i]);
      walk.next(p);
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum[i] *= 1.0f / kAdded;
  write_vector<O>(e.y.at(batch, first, c, l), e.y.piece, valid, sum);
}

}  // namespace vmamba::cuda
