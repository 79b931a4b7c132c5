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
    lane = threadIdx.x % kLanes;
    warp = threadIdx.x / kLanes;
    column = lane & (p.width - 1);
    slot = int(threadIdx.x) >> p.log_width;
    warp_slot = lane >> p.log_width;
    parts = p.width / kSteps;
    part = lane & (parts - 1);
    step = lane >> (p.log_width - 3);
  }
};

// The positions of 8 steps of a scan.
__device__ __forceinline__ void load_positions(const unsigned* map, unsigned (&position)[kSteps]) {
  const uint4* from = reinterpret_cast<const uint4*>(map);
  const uint4 low = from[0], high = from[1];
  position[0] = low.x, position[1] = low.y, position[2] = low.z, position[3] = low.w;
  position[4] = high.x, position[5] = high.y, position[6] = high.z, position[7] = high.w;
}

// A position's place: 32 by 32 bits give 64.
template <typename P>
__device__ __forceinline__ P* place(P* first, unsigned position, unsigned stride) {
  return first + std::uint64_t(position) * stride;
}

// The values of 8 positions of one channel; `from` is its first.
template <typename T>
__device__ __forceinline__ void gather8(const char* from, unsigned stride, const unsigned (&position)[kSteps],
                                        float (&v)[kSteps]) {
#pragma unroll
  for (int i = 0; i < kSteps; ++i) v[i] = widen(*reinterpret_cast<const T*>(place(from, position[i], stride)));
}

template <typename T>
__device__ __forceinline__ void scatter8(char* to, unsigned stride, const unsigned (&position)[kSteps], int steps,
                                         const float (&v)[kSteps]) {
  if (steps >= kSteps) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) *reinterpret_cast<T*>(place(to, position[i], stride)) = narrow<T>(v[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kSteps - 1; ++i)
      if (i < steps) *reinterpret_cast<T*>(place(to, position[i], stride)) = narrow<T>(v[i]);
  }
}

// Adds the values of a direction to those of the directions before it; the last writes the result. Each position of an
// image is met once in every direction. `inside` are the sums where they lie in shared memory.
template <typename T>
__device__ __forceinline__ void merge8(const Ss2d& p, int direction, char* inside, int column, const Image& out,
                                       bool out_f32, i64 batch, int channel, const unsigned (&position)[kSteps],
                                       int steps, float (&v)[kSteps]) {
  const unsigned stride = unsigned(p.width) * unsigned(sizeof(float));
  const bool full = steps >= kSteps;
  const auto outside = [&] {
    return pinned(reinterpret_cast<char*>(p.sums + i64(blockIdx.x) * p.length * p.width + column));
  };
  const auto shared_place = [&](int i) { return reinterpret_cast<float*>(inside + position[i] * stride); };
  if (direction > 0) {
    float before[kSteps];
    if (p.sums_shared && full) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) before[i] = *shared_place(i);
    } else if (p.sums_shared) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) before[i] = i < steps ? *shared_place(i) : 0.0f;
    } else {
      const char* from = outside();
#pragma unroll
      for (int i = 0; i < kSteps; ++i)
        before[i] = i < steps ? *reinterpret_cast<const float*>(place(from, position[i], stride)) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kSteps; ++i) v[i] += before[i];
  }
  if (direction + 1 == p.directions) {
    char* to = pinned(out.at(batch, channel));
    if (out_f32)
      scatter8<float>(to, out.position, position, steps, v);
    else
      scatter8<T>(to, out.position, position, steps, v);
  } else if (p.sums_shared && full) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) *shared_place(i) = v[i];
  } else if (p.sums_shared) {
#pragma unroll
    for (int i = 0; i < kSteps - 1; ++i)
      if (i < steps) *shared_place(i) = v[i];
  } else {
    scatter8<float>(outside(), stride, position, steps, v);
  }
}

// Where column j of a step lies in the rows of its slot.
__device__ __forceinline__ int cell(int step, int j) { return (j >> 2) * (4 * kSteps) + step * 4 + (j & 3); }

// Reads the rows of x_dbl of a warp's steps into its shared memory, as float32. Lanes lie along a row, and beside each
// other where it is short.
template <typename T>
struct RowLoader {
  static constexpr int kAhead = 4;
  const Ss2d& p;
  const char* from;  // the row of position 0, at the lane's column of the direction
  float* to;         // of the warp
  int column, first;

  __device__ __forceinline__ RowLoader(const Ss2d& p, const Ss2dLane& at, float* shared) : p(p) {
    column = at.lane & ((1 << p.log_columns) - 1);
    first = at.lane >> p.log_columns;
    to = shared + p.memory.rows + at.warp * (kLanes >> p.log_width) * p.memory.slot_pitch;
    from = nullptr;
  }

  __device__ __forceinline__ void choose(i64 batch, int direction) {
    from = pinned(p.x_dbl.at(batch, direction * p.section() + column));
  }

  // Clears the columns that pad the rows, once.
  __device__ __forceinline__ void clear(int lane) const {
    for (int q = lane; q < (kLanes >> p.log_width) * p.memory.slot_pitch; q += kLanes) to[q] = 0.0f;
  }

  // Column j of the lane's row in a round; `map` is that of its first row.
  __device__ __forceinline__ float load(const unsigned* map, int j) const {
    return j < p.section() ? widen(reinterpret_cast<const T*>(place(from, *map, p.x_dbl.position))[j - column]) : 0.0f;
  }

  // `row` counts from the lane's first.
  __device__ __forceinline__ void store(int row, int j, float value) const {
    const Ss2dMemory& m = p.memory;
    const int gap = j < p.rank ? 0 : j < p.rank + p.states ? m.B - p.rank : m.C - p.rank - p.states;
    const int step = row % kSteps + first;  // `first` is below 8 and below what divides `row`
    if (j < p.section()) to[row / kSteps * m.slot_pitch + cell(step, j + gap)] = value;
  }

  // The first rows are loaded early and stored late.
  __device__ __forceinline__ void load_ahead(const unsigned* map, float (&ahead)[kAhead]) const {
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      ahead[i] = i * p.rows_at_once < p.warp_steps ? load(map + i * p.rows_at_once, column) : 0.0f;
  }

  __device__ __forceinline__ void store_all(const unsigned* map, const float (&ahead)[kAhead]) const {
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (i * p.rows_at_once < p.warp_steps) store(i * p.rows_at_once, column, ahead[i]);
#pragma unroll 2
    for (int row = kAhead * p.rows_at_once; row < p.warp_steps; row += p.rows_at_once)
      store(row, column, load(map + row, column));
#pragma unroll 1
    for (int j = column + kLanes; j - column < p.section(); j += kLanes) {
#pragma unroll 2
      for (int row = 0; row < p.warp_steps; ++row) store(row, j, load(map + row, j));
    }
  }
};

// dt_weight and A of a direction for the channels of a block, 0 where there are none. The block meets before and after.
__device__ __forceinline__ void load_direction(const Ss2d& p, const Ss2dMemory& m, float* shared, int direction,
                                               int channel0) {
  const int column = threadIdx.x & (p.width - 1);
  const int channel = channel0 + column;
  const bool exists = channel < p.channels;
  const i64 index = i64(direction) * p.channels + channel;
  const int at_once = p.threads >> p.log_width;
  const int first = int(threadIdx.x) >> p.log_width;
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
      const float4 row = *reinterpret_cast<const float4*>(rows + cell(i, r));
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
