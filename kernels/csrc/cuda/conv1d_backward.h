// The causal convolution, backward. With q the gradient of the sum over the taps, in the own time of a group:
// dx_s = sum_j weight[j] q_{s + (W-1-j)}, dweight[j] = sum_s q_s x_{s - (W-1-j)}, dbias = sum_s q_s.
// Sums of a block go to `partial`, and conv_reduce adds them in a fixed order.
#pragma once

#include "conv1d_forward.h"
#include "lane_sums.h"

namespace vmamba::cuda::conv1d {

// What one thread adds up for kCount channels.
template <int kTaps, int kCount>
struct Sums {
  float w[kTaps][kCount] = {};
  float bias[kCount] = {};
};

// Blocks that share a multiprocessor at more than 4 taps: two leave 128 registers, which spill on some.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int kManyTapsBlocks = 1;
#else
constexpr int kManyTapsBlocks = 2;
#endif

// A place in shared memory for the channels of a thread.
template <int kColumns>
struct alignas(4 * kColumns) Slot {
  float v[kColumns];
};

// Channels side by side: a warp takes kColumns * 32 channels and up to kBackwardSteps steps, the warps of a block the
// steps that follow one another. dx of the groups before the last waits in shared memory, a place of its own for every
// thread, where several groups read one x.
template <typename T, int kTaps>
__global__ void __launch_bounds__(kWarps * kLanes, kTaps == 4 ? 2 : kManyTapsBlocks) conv_backward_last(const __grid_constant__ Backward b) {
  VMAMBA_SHARED(shared);
  constexpr int kColumns = columns_of(kTaps);
  constexpr int kAhead = sizeof(T) == 4 ? 1 : 4;  // steps that are read at once
  using Place = Slot<kColumns>;
  const Conv& p = b.conv;
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int blocks = (p.channels + kColumns * kLanes - 1) / (kColumns * kLanes);
  const i64 place = blockIdx.x / unsigned(blocks);
  const int first_channel = int(blockIdx.x % unsigned(blocks)) * kColumns * kLanes;
  const i64 batch = place / b.pieces, start = (place % b.pieces * kWarps + warp) * b.steps;
  const int channel = first_channel + lane * kColumns;
  const int count = max(0, min(kColumns, p.channels - channel));
  const int steps = int(max(i64(0), min(i64(b.steps), p.length - start)));
  const bool waits = p.shared && p.groups > 1;
  Place* waiting = reinterpret_cast<Place*>(shared) + threadIdx.x;
  Place* sums = reinterpret_cast<Place*>(shared) + (waits ? kBackwardSteps * kWarps * kLanes : 0);
#pragma unroll 1
  for (int g = 0; g < p.groups; ++g) {
    Sums<kTaps, kColumns> own_sums;
    const Filters<kTaps, kColumns> filters(p, g, channel, count);
    if (steps > 0 && count > 0) {
      const bool reversed = p.reversed(g), mirrored = p.mirrored(g);
      const i64 own = reversed ? p.length - start - steps : start;
      const int part = g * p.channels + channel;
      const char* x = p.x.at(batch, p.shared ? channel : part, reversed ? p.length - 1 - own : own);
      const char* dout = b.dout.at(batch, part, mirrored ? p.length - 1 - own : own);
      char* dx = b.dx.at(batch, p.shared ? channel : part, reversed ? p.length - 1 - own : own);
      const i64 x_step = reversed ? -p.x.time : p.x.time, dout_step = mirrored ? -b.dout.time : b.dout.time;
      const i64 dx_step = reversed ? -b.dx.time : b.dx.time;
      constexpr int kBytes = kColumns * int(sizeof(T));
      const bool wide_x = count == kColumns && aligned<kBytes>(x, x_step);
      const bool wide_dout = count == kColumns && aligned<kBytes>(dout, dout_step);
      const bool wide_dx = count == kColumns && aligned<kBytes>(dx, dx_step);
      const bool first = !waits || g == 0, last = !waits || g + 1 == p.groups;
      const int all = steps + p.taps - 1;  // the gradients of so many outputs reach the piece
      float window[kTaps][kColumns], q[kTaps][kColumns] = {};
#pragma unroll
      for (int i = 0; i < kTaps - 1; ++i) {
        const int before = kTaps - 1 - i;
        const bool there = own >= before && filters.has(i);
        widen(there ? load<T, kColumns>(x - before * x_step, 0, count, wide_x) : none<T, kColumns>(), window[i]);
      }
#pragma unroll 1
      for (int base = 0; base < steps + kTaps - 1; base += kTaps) {
        Vector<T, kColumns> read[kAhead], grads[kAhead];
#pragma unroll
        for (int i = 0; i < kTaps; ++i) {
          if (i % kAhead == 0) {
#pragma unroll
            for (int k = 0; k < kAhead; ++k, x += x_step, dout += dout_step) {
              const int step = base + i + k;
              const bool there = step < all && own + step < p.length;
              read[k] = there ? load<T, kColumns>(x, 0, count, wide_x) : none<T, kColumns>();
              grads[k] = there ? load<T, kColumns>(dout, 0, count, wide_dout) : none<T, kColumns>();
            }
          }
          widen(read[i % kAhead], window[(i + kTaps - 1) % kTaps]);
          widen(grads[i % kAhead], q[i]);
          if (p.silu) {
#pragma unroll
            for (int c = 0; c < kColumns; ++c) {
              float sum = filters.bias[c];
#pragma unroll
              for (int j = 0; j < kTaps; ++j)
                if (filters.has(j)) sum = fmaf(filters.w[j][c], window[(i + j) % kTaps][c], sum);
              q[i][c] *= silu_derivative(sum);
            }
          }
          if (base + i < steps) {
#pragma unroll
            for (int c = 0; c < kColumns; ++c) {
#pragma unroll
              for (int j = 0; j < kTaps; ++j)
                if (filters.has(j))
                  own_sums.w[j][c] = fmaf(q[i][c], window[(i + j) % kTaps][c], own_sums.w[j][c]);
              own_sums.bias[c] += q[i][c];
            }
          }
          const int done = base + i - (kTaps - 1);  // the step whose dx is now complete
          if (done >= 0 && done < steps) {
            Place& slot = waiting[(reversed ? steps - 1 - done : done) * kWarps * kLanes];
            Place sum{};
            if (!first) sum = slot;
#pragma unroll
            for (int c = 0; c < kColumns; ++c)
#pragma unroll
              for (int j = 0; j < kTaps; ++j)
                if (filters.has(j)) sum.v[c] = fmaf(filters.w[j][c], q[(i + kTaps - j) % kTaps][c], sum.v[c]);
            if (last)
              store<T, kColumns>(dx + done * dx_step, sum.v, 0, count, wide_dx);
            else
              slot = sum;
          }
        }
      }
    }
    // The sums of the upper four warps, then of all by fours, then one for the block.
    const int rows = p.taps + 1, skip = kTaps - p.taps;
    Place* mine = sums + (warp % (kWarps / 2)) * rows * kLanes + lane;
#pragma unroll
    for (int half = 1; half >= 0; --half) {
      if (warp / (kWarps / 2) == half) {
#pragma unroll
        for (int j = 0; j <= kTaps; ++j) {
          if (j < skip) continue;
          Place& slot = mine[(j - skip) * kLanes];
          Place sum{};
          if (half == 0) sum = slot;
#pragma unroll
          for (int c = 0; c < kColumns; ++c) sum.v[c] += j < kTaps ? own_sums.w[j < kTaps ? j : 0][c] : own_sums.bias[c];
          slot = sum;
        }
      }
#ifdef VMAMBA_PLANTED_RACE
      if (half == 0)
#endif
        __syncthreads();
    }
    const float* all_sums = reinterpret_cast<const float*>(sums);
    float* to = b.partial + (place * p.groups + g) * rows * p.channels;
    for (int i = threadIdx.x; i < rows * kColumns * kLanes; i += kWarps * kLanes) {
      const int j = i / (kColumns * kLanes), c = first_channel + i % (kColumns * kLanes);
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps / 2; ++w) sum += all_sums[w * rows * kColumns * kLanes + i];
      if (c < p.channels) to[i64(j) * p.channels + c] = sum;
    }
    __syncthreads();
  }
}

// Time steps side by side: a warp takes 32 runs of one channel, a thread one of them. The gradients q of the run after
// it are computed again as far as taps reach.
template <typename T, int kTaps>
__global__ void __launch_bounds__(kRowWarps * kLanes) conv_backward_first(const __grid_constant__ Backward b) {
  constexpr int kSums = kTaps == 4 ? 8 : 16;
  const Conv& p = b.conv;
  const int lane = threadIdx.x % kLanes;
  const i64 row = i64(blockIdx.x) * kRowWarps + threadIdx.x / kLanes;
  const i64 piece = row % b.pieces, batch = row / b.pieces / p.channels;
  const int channel = int(row / b.pieces % p.channels);
  if (batch >= p.batch) return;
  float now[3 * kRun] = {}, dx[kRun] = {};
  i64 start = 0;
#pragma unroll 1
  for (int g = 0; g < p.groups; ++g) {
    const int part = g * p.channels + channel, read = p.shared ? channel : part;
    if (g == 0 || !p.shared) {
      const char* x = p.x.at(batch, read, 0);
      start = Runs<T>(x, p.length, piece * kLanes + lane).start;
#pragma unroll
      for (int i = 0; i < 3; ++i) Runs<T>::read(x, start + (i - 1) * kRun, p.length, now + i * kRun);
#pragma unroll
      for (int i = 0; i < kRun; ++i) dx[i] = 0.0f;
    }
    const Filters<kTaps, 1> filters(p, g, channel, 1);
    const bool reversed = p.reversed(g), mirrored = p.mirrored(g);
    // In the own time of the group: x of the runs before, now and after; q of the runs now and after.
    float seen[3 * kRun], q[2 * kRun];
#pragma unroll
    for (int i = 0; i < 3 * kRun; ++i) seen[i] = reversed ? now[3 * kRun - 1 - i] : now[i];
    const char* dout = b.dout.at(batch, part, 0);
    const i64 own = reversed ? p.length - kRun - start : start;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float grads[kRun];
      Runs<T>::read(dout, mirrored ? start - i * kRun : own + i * kRun, p.length, grads);
      if (mirrored) mirror(grads);
#pragma unroll
      for (int k = 0; k < kRun; ++k) q[i * kRun + k] = grads[k];
    }
    if (p.silu) {
#pragma unroll
      for (int i = 0; i < kRun + kTaps - 1; ++i) {
        float sum = filters.bias[0];
#pragma unroll
        for (int j = 0; j < kTaps; ++j)
          if (filters.has(j)) sum = fmaf(filters.w[j][0], seen[kRun + i - (kTaps - 1 - j)], sum);
        q[i] *= silu_derivative(sum);
      }
    }
    float own_dx[kRun], sums[kTaps + 1] = {};
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      own_dx[i] = 0.0f;
      sums[kTaps] += q[i];
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        if (!filters.has(j)) continue;
        own_dx[i] = fmaf(filters.w[j][0], q[i + kTaps - 1 - j], own_dx[i]);
        sums[j] = fmaf(q[i], seen[kRun + i - (kTaps - 1 - j)], sums[j]);
      }
    }
    if (reversed) mirror(own_dx);
#pragma unroll
    for (int i = 0; i < kRun; ++i) dx[i] += own_dx[i];
    if (!p.shared || g + 1 == p.groups) Runs<T>::write(b.dx.at(batch, read, 0), start, p.length, dx);

    LaneSums<kSums> lanes;
#pragma unroll
    for (int i = kSums - 1; i >= 0; --i) lanes.add(i, i <= kTaps ? sums[i <= kTaps ? i : 0] : 0.0f, lane);
    const int tap = lane - (kTaps - p.taps);
    if (tap >= 0 && tap <= p.taps)
      b.partial[(((batch * b.pieces + piece) * p.groups + g) * (p.taps + 1) + tap) * p.channels + channel] =
          lanes.result();
  }
}

// dweight and dbias from those of each part: a block sums 32 columns of [G, W+1, C], 8 threads each.
__global__ void __launch_bounds__(kReductionThreads) conv_reduce(const __grid_constant__ Reduction r) {
  constexpr int kRows = kReductionThreads / kLanes;
  VMAMBA_SHARED(shared);
  float* sums = reinterpret_cast<float*>(shared);
  const int lane = threadIdx.x % kLanes, row = threadIdx.x / kLanes;
  const i64 columns = i64(r.groups) * (r.taps + 1) * r.channels;
  const i64 column = i64(blockIdx.x) * kLanes + lane;
  float sum = 0.0f;
  if (column < columns)
    for (i64 part = row; part < r.parts; part += kRows) sum += r.partial[part * columns + column];
  sums[row * kLanes + lane] = sum;
  __syncthreads();
  if (row > 0 || column >= columns) return;
  for (int i = 1; i < kRows; ++i) sum += sums[i * kLanes + lane];
  const i64 c = column % r.channels, g = column / r.channels / (r.taps + 1);
  const int j = int(column / r.channels % (r.taps + 1));
  if (j < r.taps)
    r.dweight[(g * r.channels + c) * r.taps + j] = sum;
  else if (r.dbias)
    r.dbias[g * r.channels + c] = sum;
}

}  // namespace vmamba::cuda::conv1d
