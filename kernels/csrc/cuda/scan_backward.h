// The backward scan: windows of kChunk steps from last to first; each starts from its stored state, runs forward again
// with the states in registers, then walks back.
//
// With g_l the gradient of the state h_l, and `carry` = exp(dt_l A) g_l what it hands to the step before:
//   g_l = C_l dy_l + carry;  dC_l = sum over channels of dy_l h_l;  dB_l = sum over channels of g_l dt_l u_l
//   du_l = dt_l <g_l, B_l> + D dy_l;  d(dt_l) = u_l <g_l, B_l> + <A, carry h_{l-1}>;  dA = sum over l of dt_l carry h_{l-1}
#pragma once

#include "lane_sums.h"
#include "projections.h"
#include "softplus.h"

namespace vmamba::cuda {

// Shared memory: for each warp a window of u, delta, dy and dt; for the block one of B and C, and the sums of dB and dC
// of each warp, twice, so that one barrier is enough between writing and reading them.
template <typename T, int kStates>
struct BackwardMemory {
  using Input = Tile<T, kChunk>;
  using Wide = Tile<float, kChunk>;
  using Projections = ProjectionTile<kChunk, kStates, 2>;
  static constexpr int kWarp = 2 * Input::kBytes + 2 * Wide::kBytes;
  static constexpr int kSums = kChunk * 2 * kStates;  // floats of one warp

  static int bytes(int threads, int states) {
    const int warps = threads / kLanes;
    return warps * kWarp + (2 * Projections::floats(states) + 2 * warps * kSums) * int(sizeof(float));
  }
};

template <int kStates>
__device__ __forceinline__ void load_states(const float* from, float (&v)[kStates]) {
  if constexpr (kStates == 2) {
    const float2 two = *reinterpret_cast<const float2*>(from);
    v[0] = two.x, v[1] = two.y;
  } else {
    v[0] = from[0];
  }
}

template <typename T, int kStates>
__global__ void __launch_bounds__(kMostThreads, kStates == 1 ? 4 : 2)
    scan_backward(const __grid_constant__ Backward b) {
  using Memory = BackwardMemory<T, kStates>;
  using Input = typename Memory::Input;
  using Wide = typename Memory::Wide;
  using Projections = typename Memory::Projections;
  constexpr int kValues = 8 * 2 * kStates;  // sums over lanes of 8 steps: dB, then dC, of each state at each step
  VMAMBA_SHARED(shared);
  const Scan& p = b.scan;
  const Place at = locate(p);
  const int N = p.states;
  const int warps = p.threads / kLanes;
  const i64 KD = p.channels();

  char* u_tile = shared + at.warp * Memory::kWarp;
  char* delta_tile = u_tile + Input::kBytes;
  char* dy_tile = delta_tile + Input::kBytes;
  char* dt_tile = dy_tile + Wide::kBytes;
  float* B_tile = reinterpret_cast<float*>(shared + warps * Memory::kWarp);
  float* C_tile = B_tile + Projections::floats(N);
  float* sums = C_tile + Projections::floats(N);
  const int pitch = Projections::pitch(N);
  const ProjectionLoader<T, Projections, kChunk> loader(p, at);
  loader.clear_padding(B_tile);

  const float bias = p.delta_bias && at.exists ? p.delta_bias[at.channel / p.delta_ratio] : 0.0f;
  const float skip = p.D && at.exists ? p.D[at.channel] : 0.0f;
  float* running = b.running + at.pass * N * KD + at.channel;
  float* partial_A = b.partial_sums + at.pass * (N + 2) * KD + at.channel;
  const i64 parts = p.batch * p.groups * p.parts();
  float dskip = 0.0f, dbias = 0.0f;
  float A2[kStates], carry[kStates], dA[kStates];
  if constexpr (kStates == 1) {
    A2[0] = at.exists ? kLog2e * p.A[at.channel] : 0.0f;
    carry[0] = at.exists && b.running ? running[0] : 0.0f;
    dA[0] = 0.0f;
  } else if (at.exists) {
    for (int n = 0; n < N; ++n) partial_A[n * KD] = 0.0f;
  }

  const i64 windows = (at.stop - at.start + kChunk - 1) / kChunk;
  int parity = 0;
  for (i64 time = at.start + (windows - 1) * kChunk; time >= at.start; time -= kChunk) {
    const int steps = int(min(at.stop - time, i64(kChunk)));
    const Window window{at.batch, at.channel0, time, at.channels, steps};
    const Window delta_window{at.batch, at.delta0, time, at.delta_channels, steps};
    __syncthreads();
    fetch<T, kChunk>(u_tile, p.u, window, at.lane);
    fetch<T, kChunk>(delta_tile, p.delta, delta_window, at.lane);
    if (b.dout_f32)
      fetch<float, kChunk>(dy_tile, b.dout, window, at.lane);
    else
      fetch<T, kChunk>(dy_tile, b.dout, window, at.lane);
    close_copies();
#pragma unroll 4
    for (int i = 0; i < loader.count(); ++i) loader.store(B_tile, i, loader.load(i, time, steps));
    await_copies<0>();
    __syncthreads();

    const auto read_dy = [&](int step, float(&dy)[8]) {
      if (b.dout_f32)
        read8<float, kChunk>(dy_tile, b.dout.channel_last, at.lane, step, dy);
      else
        read8<T, kChunk>(dy_tile, b.dout.channel_last, at.lane, step, dy);
    };

#pragma unroll 1
    for (int step = 0; step < steps; step += 8) {
      float dt[8];
      read8<T, kChunk>(delta_tile, p.delta.channel_last, at.delta_lane, step, dt);
#pragma unroll
      for (int i = 0; i < 8; ++i) dt[i] += bias;
      if (p.softplus) {
#pragma unroll
        for (int i = 0; i < 8; ++i) dt[i] = softplus(dt[i], softplus_exponential(dt[i]));
      }
      if (step + 8 > steps) {
#pragma unroll
        for (int i = 0; i < 8; ++i)
          if (step + i >= steps) dt[i] = 0.0f;
      }
      write8<float, kChunk>(dt_tile, at.lane, step, dt);
    }

    // The results of 8 steps, once <g, B> and <A, carry h> are known.
    const auto finish = [&](int step, const float(&g_B)[8], const float(&g_A)[8], const float(&dt)[8],
                            const float(&u)[8], const float(&dy)[8]) {
      float x[8], du[8], ddelta[8];
      read8<T, kChunk>(delta_tile, p.delta.channel_last, at.delta_lane, step, x);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        du[i] = fmaf(g_B[i], dt[i], skip * dy[i]);
        dskip = fmaf(dy[i], u[i], dskip);
        ddelta[i] = fmaf(g_B[i], u[i], g_A[i]);
        if (p.softplus) {
          const float raw = x[i] + bias;
          ddelta[i] *= softplus_derivative(raw, softplus_exponential(raw));
        }
        if (step + i < steps) dbias += ddelta[i];
      }
      // Channel-first results take the place of the inputs in their tiles; other lanes do not read those rows.
      put8<T, kChunk>(u_tile, b.du, window, at.lane, step, du);
      if (b.ddelta_apart)
        put8<float, kChunk>(delta_tile, b.ddelta, window, at.lane, step, ddelta);
      else
        put8<T, kChunk>(delta_tile, b.ddelta, window, at.lane, step, ddelta);
    };

    float through_B[kChunk], through_A[kChunk];
    if constexpr (kStates > 1) {
#pragma unroll
      for (int t = 0; t < kChunk; ++t) through_B[t] = through_A[t] = 0.0f;
    }
#pragma unroll 1
    for (int n0 = 0; n0 < N; n0 += kStates, parity ^= 1) {
      float before[kStates], A[kStates];
#pragma unroll
      for (int j = 0; j < kStates; ++j) {
        const bool real = at.exists && n0 + j < N;
        A[j] = real ? p.A[i64(at.channel) * N + n0 + j] : 0.0f;
        before[j] = real && time > 0
                        ? b.stored_states[((at.batch * b.stored + time / kChunk - 1) * N + n0 + j) * KD + at.channel]
                        : 0.0f;
        if constexpr (kStates > 1) {
          A2[j] = kLog2e * A[j];
          carry[j] = real ? running[(n0 + j) * KD] : 0.0f;
          dA[j] = real ? partial_A[(n0 + j) * KD] : 0.0f;
        }
      }

      float h[kChunk][kStates];  // after each step
#pragma unroll
      for (int step = 0; step < kChunk; step += 8) {
        if (step >= steps) break;
        float dt[8], u[8];
        read8<float, kChunk>(dt_tile, false, at.lane, step, dt);
        read8<T, kChunk>(u_tile, p.u.channel_last, at.lane, step, u);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          float B[kStates];
          load_states(B_tile + (step + i) * pitch + n0, B);
          const float dtu = dt[i] * u[i];
#pragma unroll
          for (int j = 0; j < kStates; ++j) {
            const float last = step + i > 0 ? h[step + i - (step + i > 0)][j] : before[j];
            h[step + i][j] = fmaf(exp2_fast(dt[i] * A2[j]), last, dtu * B[j]);
          }
        }
      }

#pragma unroll
      for (int step = kChunk - 8; step >= 0; step -= 8) {
        if (step >= steps) continue;
        float dt[8], u[8], dy[8], g_B[8], g_A[8];
        LaneSums<kValues> lane_sums;
        read8<float, kChunk>(dt_tile, false, at.lane, step, dt);
        read8<T, kChunk>(u_tile, p.u.channel_last, at.lane, step, u);
        read_dy(step, dy);
#pragma unroll
        for (int i = 7; i >= 0; --i) {
          const int t = step + i;
          float B[kStates], C[kStates], to_sum[2 * kStates];
          load_states(B_tile + t * pitch + n0, B);
          load_states(C_tile + t * pitch + n0, C);
          const float dtu = dt[i] * u[i];
          g_B[i] = kStates > 1 ? through_B[t] : 0.0f;
          g_A[i] = kStates > 1 ? through_A[t] : 0.0f;
#pragma unroll
          for (int j = 0; j < kStates; ++j) {
            const float g = fmaf(C[j], dy[i], carry[j]);
            to_sum[j] = g * dtu;
            to_sum[kStates + j] = dy[i] * h[t][j];
            g_B[i] = fmaf(g, B[j], g_B[i]);
            carry[j] = g * exp2_fast(dt[i] * A2[j]);
            const float moved = carry[j] * (t > 0 ? h[t - (t > 0)][j] : before[j]);
            dA[j] = fmaf(moved, dt[i], dA[j]);
            g_A[i] = fmaf(moved, A[j], g_A[i]);
          }
#pragma unroll
          for (int v = 2 * kStates - 1; v >= 0; --v) lane_sums.add(i * 2 * kStates + v, to_sum[v], at.lane);
          if constexpr (kStates > 1) {
            through_B[t] = g_B[i];
            through_A[t] = g_A[i];
          }
        }
        if (at.lane < kValues)
          sums[(parity * warps + at.warp) * Memory::kSums + step / 8 * kValues + at.lane] = lane_sums.result();
        if constexpr (kStates == 1) finish(step, g_B, g_A, dt, u, dy);
      }
      if constexpr (kStates > 1) {
#pragma unroll
        for (int j = 0; j < kStates; ++j) {
          if (!at.exists || n0 + j >= N) continue;
          running[(n0 + j) * KD] = carry[j];
          partial_A[(n0 + j) * KD] = dA[j];
        }
      }
#ifndef VMAMBA_PLANTED_RACE
      __syncthreads();
#endif
      for (int q = threadIdx.x; q < Memory::kSums; q += p.threads) {
        const int t = q % kChunk;
        const int which = q / kChunk / kStates;
        const int j = q / kChunk % kStates;
        if (t >= steps || n0 + j >= N) continue;
        float sum = 0.0f;
        for (int w = 0; w < warps; ++w)
          sum += sums[(parity * warps + w) * Memory::kSums + t * 2 * kStates + which * kStates + j];
        const i64 part = p.atomics ? at.batch * p.groups + at.group : at.unit;
        float* to = b.partial_BC + ((which * parts + part) * N + n0 + j) * p.length + time + t;
        if (p.atomics)
          atomicAdd(to, sum);
        else
          *to = sum;
      }
    }

    if constexpr (kStates > 1) {
#pragma unroll
      for (int step = 0; step < kChunk; step += 8) {
        if (step >= steps) break;
        float dt[8], u[8], dy[8], g_B[8], g_A[8];
        read8<float, kChunk>(dt_tile, false, at.lane, step, dt);
        read8<T, kChunk>(u_tile, p.u.channel_last, at.lane, step, u);
        read_dy(step, dy);
#pragma unroll
        for (int i = 0; i < 8; ++i) g_B[i] = through_B[step + i], g_A[i] = through_A[step + i];
        finish(step, g_B, g_A, dt, u, dy);
      }
    }
    __syncwarp();
    if (!b.du.channel_last) drain<T, kChunk>(u_tile, b.du, window, at.lane);
    if (!b.ddelta.channel_last) drain<T, kChunk>(delta_tile, b.ddelta, window, at.lane);
  }

  if (!at.exists) return;
  if constexpr (kStates == 1) partial_A[0] = dA[0];
  partial_A[N * KD] = dskip;
  partial_A[(N + 1) * KD] = dbias;
}

}  // namespace vmamba::cuda
