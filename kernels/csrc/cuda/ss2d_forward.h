// The forward of ss2d. A tile takes one barrier for every kStates states: each thread runs its 8 steps from a state of 0,
// the block meets, each thread joins what the slots before it did to the state, and runs its steps again from there.
#pragma once

#include "ss2d_block.h"

namespace vmamba::cuda {

// kAll: the number of states where it is known, else 0.
template <typename T, int kStates, int kAll>
__global__ void __launch_bounds__(kSs2dThreads, 2) ss2d_forward(const __grid_constant__ Ss2dForward f) {
  VMAMBA_SHARED(memory);
  const Ss2d& p = f.ss2d;
  const int N = kAll ? kAll : p.states;
  float* shared = reinterpret_cast<float*>(memory);
  const Ss2dMemory m(p, kStates, false);
  const Ss2dLane at(p);
  const i64 batch = blockIdx.x / unsigned(p.blocks());
  const int block = int(blockIdx.x % unsigned(p.blocks()));
  const int channel0 = block * p.width;
  const bool exists = channel0 + at.column < p.channels;
  const int channel = exists ? channel0 + at.column : p.channels - 1;
  const i64 length = p.length;
  const i64 KC = i64(p.directions) * p.channels;
  const int tile = p.tile();
  const int warp_first = at.warp * (kLanes / p.width) * kSteps;  // step of the tile

  const RowLoader<T> loader(p, m, at, shared, batch);
  const float* weights = shared + m.weights + at.column;
  const float* rows = shared + m.rows + at.slot * m.slot_pitch;
  float* sums = (p.sums_shared ? shared + m.sums : p.sums + i64(blockIdx.x) * length * p.width) + at.column;
  const char* x = p.x.at(batch, channel, 0);
  char* out = f.out.at(batch, channel, 0);
  const float skip = skip_of(p, channel);
  int parity = 0;
  loader.clear(at.lane);

#pragma unroll 1
  for (int k = 0; k < p.directions; ++k) {
    const i64* map = p.maps + k * length;
    const i64 index = i64(k) * p.channels + channel;
    const float bias = p.delta_bias ? p.delta_bias[index] : 0.0f;
    int position[kSteps];
    float u[kSteps], ahead[RowLoader<T>::kAhead];
    load_positions(map, i64(at.slot) * kSteps, length, position);
    loader.load_ahead(map, warp_first, length, k, ahead);
    __syncthreads();
    load_direction(p, m, shared, k, channel0);
    gather8<T>(x, p.x.time, position, u);
    loader.store_all(map, warp_first, length, k, ahead);
    __syncthreads();

    int side = 0;  // of `carry` that holds the state which enters the tile
#pragma unroll 1
    for (i64 start = 0; start < length; start += tile, side ^= 1) {
      const i64 first = start + at.slot * kSteps;
      const bool busy = start + warp_first < length;  // the same in all lanes of a warp
      const i64 next = start + tile;
      int next_position[kSteps];
      if (next < length) {
        load_positions(map, first + tile, length, next_position);
        loader.load_ahead(map, next + warp_first, length, k, ahead);
      }

      float dt[kSteps], dtu[kSteps], y[kSteps], time = 0.0f;
      if (busy) {
        project8(m, weights, rows, bias, dt);
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          dt[i] = softplus(dt[i], softplus_exponential(dt[i]));
          if (first + i >= length) dt[i] = 0.0f;
          dtu[i] = dt[i] * u[i];
          time += dt[i];
          y[i] = 0.0f;
        }
      }
#pragma unroll 1
      for (int n0 = 0; n0 < N; n0 += kStates, parity ^= 1) {
        float a[kStates][kSteps], decay[kStates];
        float* total = shared + m.totals + parity * kStates * 2 * p.threads + at.column;
        if (busy) {
          float h[kStates];
#pragma unroll
          for (int j = 0; j < kStates; ++j) {
            decay[j] = shared[m.decay + (n0 + j) * p.width + at.column];
            h[j] = 0.0f;
          }
#pragma unroll
          for (int i = 0; i < kSteps; ++i) {
            float B[kStates];
            load_states_of(rows + i * m.pitch + m.B + n0, B);
#pragma unroll
            for (int j = 0; j < kStates; ++j) {
              a[j][i] = exp2_fast(dt[i] * decay[j]);
              h[j] = fmaf(a[j][i], h[j], dtu[i] * B[j]);
            }
          }
#pragma unroll
          for (int j = 0; j < kStates; ++j) {
            total[2 * j * p.threads + at.slot * p.width] = exp2_fast(time * decay[j]);
            total[(2 * j + 1) * p.threads + at.slot * p.width] = h[j];
          }
        }
#ifndef VMAMBA_PLANTED_RACE
        __syncthreads();
#endif
        if (!busy) continue;
        float h[kStates];
#pragma unroll
        for (int j = 0; j < kStates; ++j) h[j] = shared[m.carry + (side * m.states + n0 + j) * p.width + at.column];
#pragma unroll 1
        for (int s = 0; s < at.slot; ++s) {
#pragma unroll
          for (int j = 0; j < kStates; ++j)
            h[j] = fmaf(total[2 * j * p.threads + s * p.width], h[j], total[(2 * j + 1) * p.threads + s * p.width]);
        }
        if (f.stored_states && exists && first > 0 && first < length && first % kStoredEvery == 0) {
          float* stored = f.stored_states + ((batch * p.stored() + first / kStoredEvery - 1) * N + n0) * KC + index;
#pragma unroll
          for (int j = 0; j < kStates; ++j)
            if (n0 + j < N) stored[j * KC] = h[j];
        }
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          float B[kStates], C[kStates];
          load_states_of(rows + i * m.pitch + m.B + n0, B);
          load_states_of(rows + i * m.pitch + m.C + n0, C);
#pragma unroll
          for (int j = 0; j < kStates; ++j) {
            h[j] = fmaf(a[j][i], h[j], dtu[i] * B[j]);
            y[i] = fmaf(C[j], h[j], y[i]);
          }
        }
        if (at.slot + 1 == p.slots()) {
#pragma unroll
          for (int j = 0; j < kStates; ++j)
            shared[m.carry + ((side ^ 1) * m.states + n0 + j) * p.width + at.column] = h[j];
        }
      }

      float next_u[kSteps];
      if (next < length) gather8<T>(x, p.x.time, next_position, next_u);
      if (busy) {
#pragma unroll
        for (int i = 0; i < kSteps; ++i) u[i] *= skip;
        merge8<T>(p, k, sums, u, f.out, f.out_f32, out, position, exists ? length - first : 0, y);
      }
      if (next < length) {
        __syncwarp();
        loader.store_all(map, next + warp_first, length, k, ahead);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < kSteps; ++i) position[i] = next_position[i], u[i] = next_u[i];
      }
    }
  }
}

}  // namespace vmamba::cuda
