// The backward of ss2d: the directions in turn, the tiles of each from the last to the first. A tile takes one barrier for
// every kStates states: each thread runs its 8 steps forward from a state of 0 and back from a gradient of 0, the block
// meets, each thread joins what the slots before and behind it did, and runs its steps again from there.
//
// With g_l the gradient of the state h_l, and `carry` = exp(dt_l A) g_l what it hands to the step before:
//   g_l = C_l dy_l + carry;  dC_l = sum over channels of dy_l h_l;  dB_l = sum over channels of g_l dt_l u_l
//   du_l = dt_l <g_l, B_l> + D dy_l;  d(dt_l) = u_l <g_l, B_l> + <A, carry h_{l-1}>;  dA = sum over l of dt_l carry h_{l-1}
// d(dt_l) times the derivative of softplus goes to the bias, through dt_weight to the step-size inputs, and with these to
// dt_weight.
#pragma once

#include "ss2d_block.h"

namespace vmamba::cuda {

// Sums over the channels of a block of 8 steps' values of each lane. A lane gets the sum of step `at.step` of its warp.
__device__ __forceinline__ float sum_channels(const Ss2dMemory& m, const Ss2dLane& at, float* mine,
                                              const float (&v)[kSteps]) {
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kSteps; ++i) mine[(at.warp_slot * kSteps + i) * m.channels_pitch + at.column] = v[i];
  __syncwarp();
  const float4* row = reinterpret_cast<const float4*>(mine + at.step * m.channels_pitch + at.part * kSteps);
  const float4 low = row[0], high = row[1];
  float sum = (low.x + low.y) + (low.z + low.w) + ((high.x + high.y) + (high.z + high.w));
  for (int bit = 1; bit < at.parts; bit *= 2) sum += __shfl_xor_sync(kAllLanes, sum, bit);
  return sum;
}

// Adds what a block of channels brings to dx_dbl; without atomics the first of a group of blocks starts the sum.
__device__ __forceinline__ void tally_row(float* to, float value, bool start, bool atomics) {
  if (atomics)
    atomicAdd(to, value);
  else
    *to = start ? value : *to + value;
}

template <typename T, int kStates, int kAll>
__global__ void __launch_bounds__(kSs2dThreads) ss2d_backward(const __grid_constant__ Ss2dBackward b) {
  VMAMBA_SHARED(memory);
  const Ss2d& p = b.ss2d;
  const int N = kAll ? kAll : p.states;
  float* shared = reinterpret_cast<float*>(memory);
  const Ss2dMemory& m = p.memory;
  const Ss2dLane at(p);
  const i64 batch = blockIdx.x / unsigned(b.groups);
  const int group = int(blockIdx.x % unsigned(b.groups));
  const int length = int(p.length);
  const i64 KC = i64(p.directions) * p.channels;
  RowLoader<T> loader(p, at, shared);
  const int tile = p.tile();
  const int section = p.section();
  const int tally_rows = m.tally_rows();
  const int warp_first = at.warp * p.warp_steps;  // step of the tile

  const float* weights = shared + m.weights + at.column;
  const float* rows = shared + m.rows + at.slot * m.slot_pitch;
  float* to_sum = shared + m.channels + warp_first * m.channels_pitch;
  const float* sum_row = to_sum + at.step * m.channels_pitch;
  float* tallies = b.tallies_shared ? shared + m.tallies : b.tallies + i64(blockIdx.x) * tally_rows * p.threads;
  char* inside = reinterpret_cast<char*>(shared + m.sums + at.column);
  float* partial_rows = b.partial_rows + (i64(b.atomics ? 0 : group) * p.batch + batch) * p.length * p.row();
  float* partial_weights = b.partial_weights + batch * (p.rank + N + 2) * KC;
  int parity = 0;
  loader.clear(at.lane);

#pragma unroll 1
  for (int block = group; block < p.blocks(); block += b.groups) {
    const bool start_rows = block == group;
    const int channel0 = block * p.width;
    const bool exists = channel0 + at.column < p.channels;
    const int channel = exists ? channel0 + at.column : p.channels - 1;
    const char* x = pinned(p.x.at(batch, channel));
    const char* dout = pinned(b.dout.at(batch, channel));
    const float skip = skip_of(p, channel);

#pragma unroll 1
    for (int k = 0; k < p.directions; ++k) {
      const unsigned* map = pinned(p.maps + k * p.map_length());
      loader.choose(batch, k);
      const i64 index = i64(k) * p.channels + channel;
      const float bias = p.delta_bias ? p.delta_bias[index] : 0.0f;
      __syncthreads();
      load_direction(p, m, shared, k, channel0);
      for (int r = 0; r < tally_rows; ++r) tallies[r * p.threads + threadIdx.x] = 0.0f;
      __syncthreads();

      float dbias = 0.0f, dskip = 0.0f, dA_only = 0.0f;
      int side = 0;  // of `carry` that holds the gradient which enters the tile
#pragma unroll 1
      for (int start = (length - 1) / tile * tile; start >= 0; start -= tile, side ^= 1) {
        const int first = start + at.slot * kSteps;
        const bool busy = start + warp_first < length;  // the same in all lanes of a warp
        const int slots = min((length - start + kSteps - 1) / kSteps, p.slots());  // that have a step
        const int steps = exists ? length - first : 0;
        float u[kSteps], dy[kSteps], dt[kSteps], slope[kSteps], g_B[kSteps], g_A[kSteps], time = 0.0f;
        const bool row_exists = start + warp_first + at.step < length;
        float* row = partial_rows;  // that of the lane's step
        if (busy) {
          float ahead[RowLoader<T>::kAhead];
          unsigned position[kSteps];
          const unsigned* row_map = map + start + warp_first + (at.lane >> p.log_columns);
          load_positions(map + first, position);
          loader.load_ahead(row_map, ahead);
          row = place(row, map[start + warp_first + at.step], unsigned(p.row())) + k * section;
          gather8<T>(x, p.x.position, position, u);
          if (b.dout_f32)
            gather8<float>(dout, b.dout.position, position, dy);
          else
            gather8<T>(dout, b.dout.position, position, dy);
          __syncwarp();
          loader.store_all(row_map, ahead);
          __syncwarp();
          project8(m, weights, rows, bias, dt);
#pragma unroll
          for (int i = 0; i < kSteps; ++i) {
            const float e = softplus_exponential(dt[i]);
            slope[i] = softplus_derivative(dt[i], e);
            dt[i] = softplus(dt[i], e);
            g_B[i] = g_A[i] = 0.0f;
          }
          if (steps < kSteps) {
#pragma unroll
            for (int i = 0; i < kSteps; ++i) {
              if (first + i >= length) dt[i] = 0.0f;
              if (i >= steps) dy[i] = 0.0f;
            }
          }
#pragma unroll
          for (int i = 0; i < kSteps; ++i) time += dt[i];
        }

#pragma unroll 1
        for (int n0 = 0; n0 < N; n0 += kStates, parity ^= 1) {
          float a[kStates][kSteps];
          float* total = shared + m.totals + parity * kStates * 3 * p.threads + at.column;
          if (busy) {
            float h[kStates], g[kStates], decay[kStates];
#pragma unroll
            for (int j = 0; j < kStates; ++j) {
              decay[j] = shared[m.decay + (n0 + j) * p.width + at.column];
              h[j] = g[j] = 0.0f;
            }
#pragma unroll
            for (int i = 0; i < kSteps; ++i) {
              float B[kStates];
              load_states_of(rows + cell(i, m.B + n0), B);
#pragma unroll
              for (int j = 0; j < kStates; ++j) {
                a[j][i] = exp2_fast(dt[i] * decay[j]);
                h[j] = fmaf(a[j][i], h[j], dt[i] * u[i] * B[j]);
              }
            }
#pragma unroll
            for (int i = kSteps - 1; i >= 0; --i) {
              float C[kStates];
              load_states_of(rows + cell(i, m.C + n0), C);
#pragma unroll
              for (int j = 0; j < kStates; ++j) g[j] = a[j][i] * fmaf(C[j], dy[i], g[j]);
            }
#pragma unroll
            for (int j = 0; j < kStates; ++j) {
              float* to = total + 3 * j * p.threads + at.slot * p.width;
              to[0] = exp2_fast(time * decay[j]);
              to[p.threads] = h[j];
              to[2 * p.threads] = g[j];
            }
          }
#ifndef VMAMBA_PLANTED_RACE
          __syncthreads();
#endif
          if (!busy) continue;

          float before[kStates], g[kStates], h[kStates][kSteps];
          const int chunk = first / kStoredEvery;
#pragma unroll
          for (int j = 0; j < kStates; ++j) {
            const bool stored = chunk > 0 && first < length && exists && n0 + j < N;
            before[j] =
                stored ? b.stored_states[((batch * p.stored() + chunk - 1) * N + n0 + j) * KC + index] : 0.0f;
            g[j] = shared[m.carry + (side * m.states + n0 + j) * p.width + at.column];
          }
#pragma unroll 1
          for (int s = at.slot & ~(kStoredEvery / kSteps - 1); s < at.slot; ++s) {
#pragma unroll
            for (int j = 0; j < kStates; ++j) {
              const float* from = total + 3 * j * p.threads + s * p.width;
              before[j] = fmaf(from[0], before[j], from[p.threads]);
            }
          }
#pragma unroll 1
          for (int s = slots - 1; s > at.slot; --s) {
#pragma unroll
            for (int j = 0; j < kStates; ++j) {
              const float* from = total + 3 * j * p.threads + s * p.width;
              g[j] = fmaf(from[0], g[j], from[2 * p.threads]);
            }
          }
#pragma unroll
          for (int i = 0; i < kSteps; ++i) {
            float B[kStates];
            load_states_of(rows + cell(i, m.B + n0), B);
#pragma unroll
            for (int j = 0; j < kStates; ++j)
              h[j][i] = fmaf(a[j][i], i > 0 ? h[j][i - (i > 0)] : before[j], dt[i] * u[i] * B[j]);
          }
          float dA[kStates];
#pragma unroll
          for (int j = 0; j < kStates; ++j) {
            float to_B[kSteps], to_C[kSteps];
            const float A = shared[m.decay + (n0 + j) * p.width + at.column] * (1.0f / kLog2e);
            dA[j] = 0.0f;
#pragma unroll
            for (int i = kSteps - 1; i >= 0; --i) {
              const float gradient = fmaf(rows[cell(i, m.C + n0 + j)], dy[i], g[j]);
              to_B[i] = gradient * (dt[i] * u[i]);
              to_C[i] = dy[i] * h[j][i];
              g_B[i] = fmaf(gradient, rows[cell(i, m.B + n0 + j)], g_B[i]);
              g[j] = gradient * a[j][i];
              const float moved = g[j] * (i > 0 ? h[j][i - (i > 0)] : before[j]);
              dA[j] = fmaf(moved, dt[i], dA[j]);
              g_A[i] = fmaf(moved, A, g_A[i]);
            }
            const float dB = sum_channels(m, at, to_sum, to_B);
            const float dC = sum_channels(m, at, to_sum, to_C);
            if (at.part == 0 && row_exists && n0 + j < N) {
              tally_row(row + p.rank + n0 + j, dB, start_rows, b.atomics);
              tally_row(row + p.rank + N + n0 + j, dC, start_rows, b.atomics);
            }
            if (at.slot == 0) shared[m.carry + ((side ^ 1) * m.states + n0 + j) * p.width + at.column] = g[j];
          }
          if constexpr (kAll == 1) {
            dA_only += dA[0];
          } else {
#pragma unroll
            for (int j = 0; j < kStates; ++j) tallies[(m.ranks + n0 + j) * p.threads + threadIdx.x] += dA[j];
          }
        }
        if (!busy) continue;

        float ddelta[kSteps];
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          ddelta[i] = fmaf(g_B[i], u[i], g_A[i]) * slope[i];
          dbias += ddelta[i];
          if (k == 0) dskip = fmaf(dy[i], u[i], dskip);
          g_B[i] = fmaf(g_B[i], dt[i], k == 0 ? skip * dy[i] : 0.0f);
        }
        unsigned position[kSteps];
        load_positions(map + first, position);
        merge8<T>(p, k, inside, at.column, b.dx, false, batch, channel, position, steps, g_B);

        // The gradient of dt_weight, each thread's own.
#pragma unroll 1
        for (int r = 0; r < m.ranks; r += 4) {
          float w[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
          for (int i = 0; i < kSteps; ++i) {
            const float4 inputs = *reinterpret_cast<const float4*>(rows + cell(i, r));
            w[0] = fmaf(ddelta[i], inputs.x, w[0]);
            w[1] = fmaf(ddelta[i], inputs.y, w[1]);
            w[2] = fmaf(ddelta[i], inputs.z, w[2]);
            w[3] = fmaf(ddelta[i], inputs.w, w[3]);
          }
#pragma unroll
          for (int q = 0; q < 4; ++q) tallies[(r + q) * p.threads + threadIdx.x] += w[q];
        }

        // The gradient of the step-size inputs: a lane takes every few inputs of its step, two at a time.
        __syncwarp();
#pragma unroll
        for (int i = 0; i < kSteps; ++i)
          to_sum[(at.warp_slot * kSteps + i) * m.channels_pitch + at.column] = ddelta[i];
        __syncwarp();
#pragma unroll 1
        for (int r = at.part; r < p.rank; r += 2 * at.parts) {
          const float* low = shared + m.weights + r * m.weights_pitch;
          const float* high = low + (r + at.parts < p.rank ? at.parts * m.weights_pitch : 0);
          float sum_low = 0.0f, sum_high = 0.0f;
#pragma unroll 2
          for (int c = 0; c < p.width; c += 4) {
            const float4 d = *reinterpret_cast<const float4*>(sum_row + c);
            const float4 v = *reinterpret_cast<const float4*>(low + c);
            const float4 w = *reinterpret_cast<const float4*>(high + c);
            sum_low = fmaf(d.x, v.x, fmaf(d.y, v.y, fmaf(d.z, v.z, fmaf(d.w, v.w, sum_low))));
            sum_high = fmaf(d.x, w.x, fmaf(d.y, w.y, fmaf(d.z, w.z, fmaf(d.w, w.w, sum_high))));
          }
          if (row_exists) {
            tally_row(row + r, sum_low, start_rows, b.atomics);
            if (r + at.parts < p.rank) tally_row(row + r + at.parts, sum_high, start_rows, b.atomics);
          }
        }
      }

      // The sums over time of each thread become those of each channel.
      if constexpr (kAll == 1) tallies[m.ranks * p.threads + threadIdx.x] = dA_only;
      tallies[(tally_rows - 2) * p.threads + threadIdx.x] = dbias;
      tallies[(tally_rows - 1) * p.threads + threadIdx.x] = dskip;
      __syncthreads();
#pragma unroll 1
      for (int r = at.slot; r < tally_rows; r += p.slots()) {
        const int to = r < m.ranks ? r : r - m.ranks + p.rank - (r < m.ranks + m.states ? 0 : m.states - N);
        const bool padding = r < m.ranks ? r >= p.rank : r >= m.ranks + N && r < m.ranks + m.states;
        if (!exists || padding) continue;
        const float* from = tallies + r * p.threads + at.column;
        float sum = 0.0f;
        for (int s = 0; s < p.slots(); ++s) sum += from[s * p.width];
        partial_weights[to * KC + index] = sum;
      }
    }
  }
}

}  // namespace vmamba::cuda
