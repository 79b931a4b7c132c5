// The causal convolution, forward. No shared memory and no barriers: neighbours are read again from the L1 cache, where
// the groups after the first find all of x too.
#pragma once

#include "conv1d_vectors.h"

namespace vmamba::cuda::conv1d {

// Bytes of channels that a thread takes, of kernels made for so many taps: what fits into its registers.
__host__ __device__ constexpr int forward_bytes(int taps) { return taps == 4 ? 16 : 8; }

// Channels side by side: a thread goes through kForwardSteps steps of time with the taps' inputs in registers. A row of
// blocks takes one sequence.
template <typename T, int kTaps>
__global__ void __launch_bounds__(kForwardThreads) conv_forward_last(const __grid_constant__ Forward f) {
  constexpr int kBytes = forward_bytes(kTaps), kCount = kBytes / int(sizeof(T));
  const Conv& p = f.conv;
  const unsigned vectors = unsigned(p.channels + kCount - 1) / kCount;
  const unsigned thread = blockIdx.x * kForwardThreads + threadIdx.x;
  const i64 start = i64(thread / vectors) * kForwardSteps;
  if (start >= p.length) return;
  const int channel = int(thread % vectors) * kCount;
  const int count = min(kCount, p.channels - channel);
  const int steps = int(min(i64(kForwardSteps), p.length - start));
  for (i64 batch = blockIdx.y; batch < p.batch; batch += gridDim.y) {
#pragma unroll 1
    for (int g = 0; g < p.groups; ++g) {
      const bool reversed = p.reversed(g), mirrored = p.mirrored(g);
      const i64 own = reversed ? p.length - start - steps : start;  // the own time of the first step
      const int part = g * p.channels + channel;
      const char* x = p.x.at(batch, p.shared ? channel : part, reversed ? p.length - 1 - own : own);
      char* out = f.out.at(batch, part, mirrored ? p.length - 1 - own : own);
      const i64 x_step = reversed ? -p.x.time : p.x.time, out_step = mirrored ? -f.out.time : f.out.time;
      const bool wide_x = count == kCount && aligned<kBytes>(x, x_step);
      const bool wide_out = count == kCount && aligned<kBytes>(out, out_step);
      const Filters<kTaps, kCount> filters(p, g, channel, count);
      float window[kTaps][kCount];
#pragma unroll
      for (int i = 0; i < kTaps - 1; ++i) {
        const int before = kTaps - 1 - i;
        const bool there = own >= before && filters.has(i);
        widen(there ? load<T, kCount>(x - before * x_step, 0, count, wide_x) : none<T, kCount>(), window[i]);
      }
#pragma unroll 1
      for (int base = 0; base < steps; base += kTaps) {
        Vector<T, kCount> read[kTaps];
#pragma unroll
        for (int i = 0; i < kTaps; ++i, x += x_step)
          read[i] = base + i < steps ? load<T, kCount>(x, 0, count, wide_x) : none<T, kCount>();
#pragma unroll
        for (int i = 0; i < kTaps; ++i, out += out_step) {
          widen(read[i], window[(i + kTaps - 1) % kTaps]);
          float y[kCount];
#pragma unroll
          for (int c = 0; c < kCount; ++c) {
            y[c] = filters.bias[c];
#pragma unroll
            for (int j = 0; j < kTaps; ++j)
              if (filters.has(j)) y[c] = fmaf(filters.w[j][c], window[(i + j) % kTaps][c], y[c]);
            if (p.silu) y[c] *= sigmoid(y[c]);
          }
          if (base + i < steps) store<T, kCount>(out, y, 0, count, wide_out);
        }
      }
    }
  }
}

// Runs of kRun time steps that lie side by side, from the address divided by 16 at or before the start of a row on.
template <typename T>
struct Runs {
  const char* row;
  i64 length;
  i64 start;  // the time of the first step of the thread's run; steps outside 0 <= t < length do not exist

  __device__ __forceinline__ Runs(const char* row, i64 length, i64 run)
      : row(row), length(length), start(run * kRun - i64(reinterpret_cast<std::uintptr_t>(row) & 15) / int(sizeof(T))) {}

  __device__ __forceinline__ static int clamp(i64 steps) { return int(min(max(steps, i64(0)), i64(kRun))); }

  // The run of `tensor` at time `at`, in its own order, into 8 floats.
  __device__ __forceinline__ static void read(const char* tensor, i64 at, i64 length, float* to) {
    const int first = clamp(-at), last = clamp(length - at);
    const char* from = tensor + at * int(sizeof(T));
    widen(load<T, kRun>(from, first, last, first == 0 && last == kRun && aligned<16>(from)), to);
  }
  __device__ __forceinline__ static void write(char* tensor, i64 at, i64 length, const float* from) {
    const int first = clamp(-at), last = clamp(length - at);
    char* to = tensor + at * int(sizeof(T));
    store<T, kRun>(to, from, first, last, first == 0 && last == kRun && aligned<16>(to));
  }
};

template <int kCount>
__device__ __forceinline__ void mirror(float (&v)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    const float other = v[i];
    v[i] = v[kCount - 1 - i], v[kCount - 1 - i] = other;
  }
}

// Time steps side by side: a thread takes one run of one channel, and reads the run before (or after) it again.
template <typename T, int kTaps>
__global__ void __launch_bounds__(kForwardThreads) conv_forward_first(const __grid_constant__ Forward f) {
  const Conv& p = f.conv;
  const i64 runs = (p.length + 2 * kRun - 2) / kRun;
  const i64 thread = i64(blockIdx.x) * kForwardThreads + threadIdx.x;
  const i64 row = thread / runs;
  const i64 batch = row / p.channels;
  const int channel = int(row % p.channels);
  if (batch >= p.batch) return;
  float now[kRun] = {};
  i64 start = 0;
  const char* x = nullptr;
#pragma unroll 1
  for (int g = 0; g < p.groups; ++g) {
    const int part = g * p.channels + channel;
    if (g == 0 || !p.shared) {
      x = p.x.at(batch, p.shared ? channel : part, 0);
      start = Runs<T>(x, p.length, thread % runs).start;
      Runs<T>::read(x, start, p.length, now);
    }
    if (start >= p.length) continue;
    const Filters<kTaps, 1> filters(p, g, channel, 1);
    const bool reversed = p.reversed(g);
    float seen[2 * kRun];  // in the own time of the group: the run before, then this one
#pragma unroll
    for (int i = 0; i < kRun; ++i) seen[kRun + i] = reversed ? now[kRun - 1 - i] : now[i];
    float before[kRun];
    Runs<T>::read(x, reversed ? start + kRun : start - kRun, p.length, before);
    if (reversed) mirror(before);
#pragma unroll
    for (int i = 0; i < kRun; ++i) seen[i] = before[i];
    float y[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      y[i] = filters.bias[0];
#pragma unroll
      for (int j = 0; j < kTaps; ++j)
        if (filters.has(j)) y[i] = fmaf(filters.w[j][0], seen[kRun + i - (kTaps - 1 - j)], y[i]);
      if (p.silu) y[i] *= sigmoid(y[i]);
    }
    const bool mirrored = p.mirrored(g);
    if (mirrored) mirror(y);
    const i64 at = reversed && !mirrored ? p.length - kRun - start : start;
    Runs<T>::write(f.out.at(batch, part, 0), at, p.length, y);
  }
}

}  // namespace vmamba::cuda::conv1d
