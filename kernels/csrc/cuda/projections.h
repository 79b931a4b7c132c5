// B and C of one group over a window of time, in shared memory as float32 [time][state], for all channels of a block.
#pragma once

#include "scan_args.h"

namespace vmamba::cuda {

// kStates states are read at once; the rows are padded with zeros to a multiple of it, and by kPad floats against
// bank conflicts.
template <int kSteps, int kStates, int kPad>
struct ProjectionTile {
  __host__ __device__ static int padded(int states) { return (states + kStates - 1) / kStates * kStates; }
  __host__ __device__ static int pitch(int states) { return kStates == 1 ? 1 : padded(states) + kPad; }
  __host__ __device__ static int floats(int states) { return kSteps * pitch(states); }  // of B; C follows
};

// The threads of a block each take one time step of every few states of B and of C.
template <typename T, typename Tiles, int kSteps>
struct ProjectionLoader {
  const char* B;
  const char* C;
  i64 B_stride, C_stride;  // from one state of this thread to its next
  i64 B_time, C_time;
  int step, state, at_once, states;

  __device__ __forceinline__ ProjectionLoader(const Scan& p, const Place& at) {
    step = threadIdx.x % kSteps;
    state = threadIdx.x / kSteps;
    at_once = p.threads / kSteps;
    states = p.states;
    B_time = p.B.time, C_time = p.C.time;
    B = p.B.data + at.batch * p.B.batch + at.group * p.B.group + state * p.B.state + step * B_time;
    C = p.C.data + at.batch * p.C.batch + at.group * p.C.group + state * p.C.state + step * C_time;
    B_stride = at_once * p.B.state, C_stride = at_once * p.C.state;
  }

  // B and C of the i-th state of this thread; 0 where there is none.
  __device__ __forceinline__ float2 load(int i, i64 time, int steps) const {
    float2 both{0.0f, 0.0f};
    if (state + i * at_once < states && step < steps) {
      both.x = widen(*reinterpret_cast<const T*>(B + i * B_stride + time * B_time));
      both.y = widen(*reinterpret_cast<const T*>(C + i * C_stride + time * C_time));
    }
    return both;
  }

  __device__ __forceinline__ void store(float* tile, int i, float2 both) const {
    const int n = state + i * at_once;
    if (n >= states) return;
    float* to = tile + step * Tiles::pitch(states) + n;
    to[0] = both.x;
    to[Tiles::floats(states)] = both.y;
  }

  __device__ __forceinline__ int count() const { return (states - state + at_once - 1) / at_once; }

  // The columns that pad the states, once.
  __device__ __forceinline__ void clear_padding(float* tile) const {
#pragma unroll 1
    for (int n = states + state; n < Tiles::padded(states); n += at_once) {
      float* to = tile + step * Tiles::pitch(states) + n;
      to[0] = 0.0f;
      to[Tiles::floats(states)] = 0.0f;
    }
  }
};

}  // namespace vmamba::cuda
