// The forward scan: a thread owns a channel and walks through time with its states in registers.
#pragma once

#include "projections.h"
#include "softplus.h"

namespace vmamba::cuda {

// Shared memory: for each warp two windows of u and delta (one in use, one on its way) and 16 steps of the output; for
// the block two windows of B and C.
template <typename T, int kStates>
struct ForwardMemory {
  static constexpr int kSteps = 64 / sizeof(T);
  using Input = Tile<T, kSteps>;
  using Output = Tile<float, 16>;
  using Projections = ProjectionTile<kSteps, kStates, 4>;
  static constexpr int kWarp = 4 * Input::kBytes + Output::kBytes;

  static int bytes(int threads, int states) {
    return threads / kLanes * kWarp + 4 * Projections::floats(states) * int(sizeof(float));
  }
};

// 8 steps of kStates states: B and C start at the first of them.
template <int kStates>
__device__ __forceinline__ void scan8(const float* B, const float* C, int pitch, const float (&A2)[kStates],
                                      const float (&dt)[8], const float (&dtu)[8], float (&h)[kStates],
                                      float (&y)[8]) {
  if constexpr (kStates == 1) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      const float4 b4 = *reinterpret_cast<const float4*>(B + i);
      const float4 c4 = *reinterpret_cast<const float4*>(C + i);
      const float b[4] = {b4.x, b4.y, b4.z, b4.w};
      const float c[4] = {c4.x, c4.y, c4.z, c4.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        h[0] = fmaf(exp2_fast(dt[i + j] * A2[0]), h[0], dtu[i + j] * b[j]);
        y[i + j] = fmaf(c[j], h[0], y[i + j]);
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int n = 0; n < kStates; n += 4) {
        const float4 b4 = *reinterpret_cast<const float4*>(B + i * pitch + n);
        const float4 c4 = *reinterpret_cast<const float4*>(C + i * pitch + n);
        const float b[4] = {b4.x, b4.y, b4.z, b4.w};
        const float c[4] = {c4.x, c4.y, c4.z, c4.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          h[n + j] = fmaf(exp2_fast(dt[i] * A2[n + j]), h[n + j], dtu[i] * b[j]);
          y[i] = fmaf(c[j], h[n + j], y[i]);
        }
      }
    }
  }
}

// Blocks of a multiprocessor: 4 leave a thread 128 registers, which spill from compute capability 10 on where there are
// several states.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kManyStatesBlocks = 3;
#else
constexpr int kManyStatesBlocks = 4;
#endif

template <typename T, int kStates>
__global__ void __launch_bounds__(kMostThreads, kStates == 1 ? 4 : kManyStatesBlocks)
    scan_forward(const __grid_constant__ Forward f) {
  using Memory = ForwardMemory<T, kStates>;
  using Input = typename Memory::Input;
  using Projections = typename Memory::Projections;
  constexpr int kSteps = Memory::kSteps;
  constexpr bool kMany = kStates == 4;           // the states pass through memory, a few at a time
  constexpr int kAhead = kStates == 1 ? 1 : 4;  // states whose B and C a thread loads a window ahead
  VMAMBA_SHARED(shared);
  const Scan& p = f.scan;
  const Place at = locate(p);
  const int N = p.states;
  const i64 KD = p.channels();

  char* mine = shared + at.warp * Memory::kWarp;
  char* output = mine + 4 * Input::kBytes;
  float* projections = reinterpret_cast<float*>(shared + p.threads / kLanes * Memory::kWarp);
  const int projection_floats = Projections::floats(N);
  const int pitch = Projections::pitch(N);
  const ProjectionLoader<T, Projections, kSteps> loader(p, at);

  const float bias = p.delta_bias && at.exists ? p.delta_bias[at.channel / p.delta_ratio] : 0.0f;
  const float skip = p.D && at.exists ? p.D[at.channel] : 0.0f;
  const bool entered = at.exists && at.segment > 0 && !f.ends_only;  // else from 0
  float* running = f.running + at.pass * N * KD + at.channel;
  float A2[kStates];
  float h[kStates];
  float time_sum = 0.0f;
#pragma unroll
  for (int n = 0; n < kStates; ++n) {
    A2[n] = at.exists && n < N ? kLog2e * p.A[i64(at.channel) * N + n] : 0.0f;
    h[n] = entered && n < N ? running[n * KD] : 0.0f;
  }
  if (kMany && at.exists && !entered) {
    for (int n = 0; n < N; ++n) running[n * KD] = 0.0f;
  }

  loader.clear_padding(projections);
  loader.clear_padding(projections + 2 * projection_floats);
  // Each turn sends for the next window and works on the one that the turn before sent for; the first only sends.
  int stage = 1;
  for (i64 time = at.start - kSteps; time < at.stop; time += kSteps, stage ^= 1) {
    await_copies<0>();
    __syncthreads();
    const i64 next = time + kSteps;
    const int next_steps = int(max(min(at.stop - next, i64(kSteps)), i64(0)));
    float2 ahead[kAhead];
    if (next_steps > 0) {
      char* to = mine + (stage ^ 1) * 2 * Input::kBytes;
      fetch<T, kSteps>(to, p.u, Window{at.batch, at.channel0, next, at.channels, next_steps}, at.lane);
      fetch<T, kSteps>(to + Input::kBytes, p.delta, Window{at.batch, at.delta0, next, at.delta_channels, next_steps},
                       at.lane);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) ahead[i] = loader.load(i, next, next_steps);
    }
    close_copies();

    const char* u_tile = mine + stage * 2 * Input::kBytes;
    const char* delta_tile = u_tile + Input::kBytes;
    const float* B = projections + stage * 2 * projection_floats;
    const float* C = B + projection_floats;
    const Window window{at.batch, at.channel0, time, at.channels,
                        time < at.start ? 0 : int(min(at.stop - time, i64(kSteps)))};

    if (f.stored_states && time > 0 && time >= at.start && time % kChunk == 0 && at.exists) {
      float* stored = f.stored_states + ((at.batch * f.stored + time / kChunk - 1) * N) * KD + at.channel;
      if (kMany) {
        for (int n = 0; n < N; ++n) stored[n * KD] = running[n * KD];
      } else {
#pragma unroll
        for (int n = 0; n < kStates; ++n)
          if (n < N) stored[n * KD] = h[n];
      }
    }

#pragma unroll 1
    for (int step = 0; step < window.steps; step += 8) {
      float dt[8], dtu[8], y[8];
      read8<T, kSteps>(delta_tile, p.delta.channel_last, at.delta_lane, step, dt);
      read8<T, kSteps>(u_tile, p.u.channel_last, at.lane, step, dtu);
#pragma unroll
      for (int i = 0; i < 8; ++i) dt[i] += bias;
      if (p.softplus) {
#pragma unroll
        for (int i = 0; i < 8; ++i) dt[i] = softplus(dt[i], softplus_exponential(dt[i]));
      }
      if (step + 8 > window.steps) {
#pragma unroll
        for (int i = 0; i < 8; ++i)
          if (step + i >= window.steps) dt[i] = 0.0f;
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        y[i] = skip * dtu[i];
        dtu[i] *= dt[i];
      }
      if (f.ends_only) {
#pragma unroll
        for (int i = 0; i < 8; ++i) time_sum += dt[i];
      }
      if constexpr (!kMany) {
        scan8<kStates>(B + step * pitch, C + step * pitch, pitch, A2, dt, dtu, h, y);
      } else if (at.exists) {
#pragma unroll 1
        for (int n0 = 0; n0 < N; n0 += kStates) {
#pragma unroll
          for (int n = 0; n < kStates; ++n) {
            A2[n] = n0 + n < N ? kLog2e * p.A[i64(at.channel) * N + n0 + n] : 0.0f;
            h[n] = n0 + n < N ? running[(n0 + n) * KD] : 0.0f;
          }
          scan8<kStates>(B + step * pitch + n0, C + step * pitch + n0, pitch, A2, dt, dtu, h, y);
#pragma unroll
          for (int n = 0; n < kStates; ++n)
            if (n0 + n < N) running[(n0 + n) * KD] = h[n];
        }
      }
      if (f.out.data == nullptr) continue;

      Window out = window;
      out.time = time + step / 16 * 16;
      out.steps = min(window.steps - step / 16 * 16, 16);
      if (f.out_f32)
        put8<float, 16>(output, f.out, out, at.lane, step % 16, y);
      else
        put8<T, 16>(output, f.out, out, at.lane, step % 16, y);
      if (f.out.channel_last || (step % 16 == 0 && step + 8 < window.steps)) continue;
      __syncwarp();
      if (f.out_f32)
        drain<float, 16>(output, f.out, out, at.lane);
      else
        drain<T, 16>(output, f.out, out, at.lane);
      __syncwarp();
    }

    if (next_steps > 0) {
      float* to = projections + (stage ^ 1) * 2 * projection_floats;
#pragma unroll
      for (int i = 0; i < kAhead; ++i) loader.store(to, i, ahead[i]);
      for (int i = kAhead; i < loader.count(); ++i) loader.store(to, i, loader.load(i, next, next_steps));
    }
  }

  if (!at.exists) return;
  if (f.ends_only) f.times[at.pass * KD + at.channel] = time_sum;
  const bool last = at.segment + 1 == p.segments;
  if (!f.ends_only && (!last || f.last_state == nullptr)) return;
  float* ends = f.ends_only ? f.ends + at.pass * N * KD + at.channel : f.last_state + (at.batch * KD + at.channel) * N;
  const i64 stride = f.ends_only ? KD : 1;
  if (kMany) {
    for (int n = 0; n < N; ++n) ends[n * stride] = running[n * KD];
  } else {
#pragma unroll
    for (int n = 0; n < kStates; ++n)
      if (n < N) ends[n * stride] = h[n];
  }
}

}  // namespace vmamba::cuda
