// What the forward and the backward of ss2d share: where a thread works, and how it reads its steps.
#pragma once

#include "softplus.h"
#include "ss2d_args.h"

namespace vmamba::cuda {

// A lane within a block; the same for every tile of every direction.
struct Ss2dLane {
  int lane, warp;
  int column;      // channel, counted from the first of the block
  int slot;        // of the block
  int warp_slot;   // of the warp
  int parts;       // lanes that share a step when a warp looks at its steps one by one; each then has 8 channels
  int part, step;  // which of them this lane is, and the step, counted from the warp's first

  __device__ __forceinline__ explicit Ss2dLane(const Ss2d& p) {
    const int log_width = 31 - __clz(p.width);
    lane = threadIdx.x % kLanes;
    warp = threadIdx.x / kLanes;
    column = lane & (p.width - 1);
    slot = int(threadIdx.x) >> log_width;
    warp_slot = lane >> log_width;
    parts = p.width / kSteps;
    part = lane & (parts - 1);
    step = lane >> (log_width - 3);
  }
};

// The positions of 8 steps of a scan; of steps behind its end, that of the last.
__device__ __forceinline__ void load_positions(const i64* map, i64 first, i64 length, int (&position)[kSteps]) {
#pragma unroll
  for (int i = 0; i < kSteps; ++i) position[i] = int(map[min(first + i, length - 1)]);
}

// The values of 8 positions of one channel; `from` is its first.
template <typename T>
__device__ __forceinline__ void gather8(const char* from, i64 stride, const int (&position)[kSteps],
                                        float (&v)[kSteps]) {
#pragma unroll
  for (int i = 0; i < kSteps; ++i) v[i] = widen(*reinterpret_cast<const T*>(from + position[i] * stride));
}

template <typename T>
__device__ __forceinline__ void scatter8(char* to, i64 stride, const int (&position)[kSteps], i64 steps,
                                         const float (&v)[kSteps]) {
#pragma unroll
  for (int i = 0; i < kSteps; ++i)
    if (i < steps) *reinterpret_cast<T*>(to + position[i] * stride) = narrow<T>(v[i]);
}

// Adds the values of a direction to those of the directions before it: the first starts from `start`, the last writes
// the result. Each position of an image is met once in every direction.
template <typename T>
__device__ __forceinline__ void merge8(const Ss2d& p, int direction, float* sums, const float (&start)[kSteps],
                                       const Sequence& out, bool out_f32, char* to, const int (&position)[kSteps],
                                       i64 steps, float (&v)[kSteps]) {
  if (direction == 0) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) v[i] += start[i];
  } else {
    float before[kSteps];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) before[i] = i < steps ? sums[i64(position[i]) * p.width] : 0.0f;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) v[i] += before[i];
  }
  if (direction + 1 < p.directions) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i)
      if (i < steps) sums[i64(position[i]) * p.width] = v[i];
  } else if (out_f32) {
    scatter8<float>(to, out.time, position, steps, v);
  } else {
    scatter8<T>(to, out.time, position, steps, v);
  }
}

// Reads the rows of x_dbl of a warp's steps into its shared memory, as float32. Lanes lie along a row, and beside each
// other where it is short.
template <typename T>
struct RowLoader {
  static constexpr int kAhead = 4;
  const char* from;  // the section of the direction in the row of position 0
  float* to;         // of the warp
  i64 stride;
  int section, rank, states, B, C, pitch, slot_pitch;
  int steps;         // of a warp
  int column, first, at_once;

  __device__ __forceinline__ RowLoader(const Ss2d& p, const Ss2dMemory& m, const Ss2dLane& at, float* shared,
                                       i64 batch) {
    section = p.section(), rank = p.rank, states = p.states;
    B = m.B, C = m.C, pitch = m.pitch, slot_pitch = m.slot_pitch;
    steps = kSteps * kLanes / p.width;
    const int log_columns = section > 16 ? 5 : section > 8 ? 4 : section > 4 ? 3 : 2;
    column = at.lane & ((1 << log_columns) - 1);
    first = at.lane >> log_columns;
    at_once = kLanes >> log_columns;
    from = p.x_dbl.data + batch * p.x_dbl.batch;
    stride = p.x_dbl.time;
    to = shared + m.rows + at.warp * (kLanes / p.width) * slot_pitch;
  }

  // Clears the columns that pad the rows, once.
  __device__ __forceinline__ void clear(int lane) const {
    for (int q = lane; q < steps / kSteps * slot_pitch; q += kLanes) to[q] = 0.0f;
  }

  __device__ __forceinline__ float load(const i64* map, i64 start, i64 length, int direction, int step, int j) const {
    if (step >= steps || start + step >= length || j >= section) return 0.0f;
    const char* row = from + map[start + step] * stride;
    return widen(reinterpret_cast<const T*>(row)[direction * section + j]);
  }

  __device__ __forceinline__ void store(int step, int j, float value) const {
    if (step >= steps || j >= section) return;
    const int column = j < rank ? j : j < rank + states ? B + (j - rank) : C + (j - rank - states);
    to[step / kSteps * slot_pitch + step % kSteps * pitch + column] = value;
  }

  // The first rows are loaded early and stored late.
  __device__ __forceinline__ void load_ahead(const i64* map, i64 start, i64 length, int direction,
                                             float (&ahead)[kAhead]) const {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) ahead[i] = load(map, start, length, direction, first + i * at_once, column);
  }

  __device__ __forceinline__ void store_all(const i64* map, i64 start, i64 length, int direction,
                                            const float (&ahead)[kAhead]) const {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) store(first + i * at_once, column, ahead[i]);
#pragma unroll 4
    for (int step = first + kAhead * at_once; step < steps; step += at_once)
      store(step, column, load(map, start, length, direction, step, column));
    for (int j = column + kLanes; j - column < section; j += kLanes) {
#pragma unroll 4
      for (int step = 0; step < steps; ++step) store(step, j, load(map, start, length, direction, step, j));
    }
  }
};

// dt_weight and A of a direction for the channels of a block, 0 where there are none. The block meets before and after.
__device__ __forceinline__ void load_direction(const Ss2d& p, const Ss2dMemory& m, float* shared, int direction,
                                               int channel0) {
  const int log_width = 31 - __clz(p.width);
  const int column = threadIdx.x & (p.width - 1);
  const int channel = channel0 + column;
  const bool exists = channel < p.channels;
  const i64 index = i64(direction) * p.channels + channel;
  const int at_once = p.threads >> log_width;
  const int first = int(threadIdx.x) >> log_width;
  for (int r = first; r < m.ranks; r += at_once)
    shared[m.weights + r * m.weights_pitch + column] = exists && r < p.rank ? p.dt_weight[index * p.rank + r] : 0.0f;
  for (int n = first; n < m.states; n += at_once) {
    shared[m.decay + n * p.width + column] = exists && n < p.states ? kLog2e * p.A[index * p.states + n] : 0.0f;
    shared[m.carry + n * p.width + column] = 0.0f;
  }
}

// The step sizes of 8 steps before softplus.
__device__ __forceinline__ void project8(const Ss2dMemory& m, const float* weights, const float* rows, float bias,
                                         float (&dt)[kSteps]) {
#pragma unroll
  for (int i = 0; i < kSteps; ++i) dt[i] = bias;
#pragma unroll 1
  for (int r = 0; r < m.ranks; r += 4) {
    float w[4];
#pragma unroll
    for (int q = 0; q < 4; ++q) w[q] = weights[(r + q) * m.weights_pitch];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const float4 row = *reinterpret_cast<const float4*>(rows + i * m.pitch + r);
      dt[i] = fmaf(row.x, w[0], dt[i]);
      dt[i] = fmaf(row.y, w[1], dt[i]);
      dt[i] = fmaf(row.z, w[2], dt[i]);
      dt[i] = fmaf(row.w, w[3], dt[i]);
    }
  }
}

// kStates neighbours in a row.
template <int kStates>
__device__ __forceinline__ void load_states_of(const float* from, float (&v)[kStates]) {
  if constexpr (kStates == 4) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
  } else if constexpr (kStates == 2) {
    const float2 two = *reinterpret_cast<const float2*>(from);
    v[0] = two.x, v[1] = two.y;
  } else {
    v[0] = from[0];
  }
}

// D of a channel, summed over the directions.
__device__ __forceinline__ float skip_of(const Ss2d& p, int channel) {
  float skip = 0.0f;
  if (p.D) {
    for (int k = 0; k < p.directions; ++k) skip += p.D[i64(k) * p.channels + channel];
  }
  return skip;
}

}  // namespace vmamba::cuda
