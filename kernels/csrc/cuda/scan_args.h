// What the kernels of the selective scan are told.
//
// B batch, K groups of D channels, KD = K*D, L length, N states per channel. Time is cut into S segments that run in
// parallel (S = 1 when batch and channels fill the GPU); P = B*S.
#pragma once

#include "tile.h"

namespace vmamba::cuda {

constexpr int kChunk = 32;          // time steps between two stored states, and a divisor of every segment
constexpr int kMostThreads = 128;

// [batch, group, state, time]; strides in bytes.
struct Projection {
  const char* data = nullptr;
  i64 batch = 0;
  i64 group = 0;
  i64 state = 0;
  i64 time = 0;
};

struct Scan {
  i64 batch = 0;
  i64 length = 0;
  i64 segment = 0;        // time steps of one segment, a multiple of kChunk
  int groups = 0;
  int group_channels = 0;
  int states = 0;
  int segments = 1;
  int blocks = 1;         // thread blocks that share the channels of a group
  int threads = 32;       // of a block, one a channel
  int delta_ratio = 1;    // channels that share one delta channel
  bool softplus = true;
  bool atomics = false;   // backward: the blocks of a group add their dB and dC by atomics
  Sequence u;
  Sequence delta;
  Projection B;
  Projection C;
  const float* A = nullptr;           // [KD, N]
  const float* D = nullptr;           // [KD] or absent
  const float* delta_bias = nullptr;  // [KD / delta_ratio] or absent

  __host__ __device__ i64 channels() const { return i64(groups) * group_channels; }
  i64 units() const { return batch * groups * blocks; }
  __host__ __device__ int parts() const { return atomics ? 1 : blocks; }  // of the dB and dC of a group
};

// Thread blocks that join the segments of one batch element, a thread for each of [N, KD].
__host__ __device__ inline i64 join_blocks(const Scan& p) {
  return (p.channels() * p.states + kMostThreads - 1) / kMostThreads;
}

struct Forward {
  Scan scan;
  Sequence out;                  // without data: not wanted
  bool out_f32 = true;           // else u's type
  bool ends_only = false;        // compute only how each segment transforms the state: `ends` and `times`
  i64 stored = 0;                // how many are stored for each batch
  float* last_state = nullptr;   // [B, KD, N] or absent
  float* stored_states = nullptr;  // [B, stored, N, KD], one every kChunk steps
  float* ends = nullptr;         // [P, N, KD]: the last state of each segment when it starts from 0
  float* times = nullptr;        // [P, KD]: the sum of dt over each segment
  float* running = nullptr;      // [P, N, KD]: the state that enters each segment; in passing, when N is large
};

struct Backward {
  Scan scan;
  Sequence dout;
  bool dout_f32 = true;
  i64 stored = 0;
  const float* stored_states = nullptr;  // [B, stored, N, KD], one every kChunk steps
  const float* dlast_state = nullptr;    // [B, KD, N] or absent
  float* ends = nullptr;                 // [P, N, KD]: the gradient that leaves each segment at its start, from 0
  float* times = nullptr;                // [P, KD]
  float* running = nullptr;              // [P, N, KD]: the gradient that enters each segment; in passing, when N > 1
  Sequence du;
  Sequence ddelta;
  bool ddelta_apart = false;     // ddelta is float32 and has a channel for each channel of u
  float* partial_BC = nullptr;   // [2, B*K*parts, N, L]: dB and dC of each block, or zeros to which they are added
  float* partial_sums = nullptr;  // [P, N + 2, KD]: dA, dD and the gradient of the bias of each channel
};

// Joins the segments: from `ends` and `times` to what enters each.
struct Joining {
  Scan scan;
  bool backward = false;
  const float* ends = nullptr;         // [P, N, KD]
  const float* times = nullptr;        // [P, KD]
  const float* dlast_state = nullptr;  // [B, KD, N] or absent
  float* running = nullptr;            // [P, N, KD]
};

struct Reduction {
  Scan scan;
  const float* partial_BC = nullptr;
  const float* partial_sums = nullptr;
  const float* ddelta_apart = nullptr;  // [B, L, KD] or absent
  Projection dB;
  Projection dC;
  Sequence ddelta;
  float* dA = nullptr;
  float* dD = nullptr;
  float* ddelta_bias = nullptr;
};

// Where a thread works.
struct Place {
  i64 unit;      // batch, group and block of channels as one index
  i64 batch;
  i64 pass;      // batch and segment as one index
  i64 start;     // time steps [start, stop)
  i64 stop;
  int channel0;  // of the warp, in u
  int channel;   // of the lane
  int delta0;    // delta channel of the warp's first channel
  int group;
  int segment;
  int lane;
  int warp;
  int channels;        // of the warp that exist, 0 to 32
  int delta_channels;
  int delta_lane;      // delta channel of the lane, counted from delta0
  bool exists;
};

__device__ __forceinline__ Place locate(const Scan& p) {
  Place at;
  at.lane = threadIdx.x % kLanes;
  at.warp = threadIdx.x / kLanes;
  at.unit = blockIdx.x;
  const unsigned rest = blockIdx.x / unsigned(p.blocks);
  const int block = int(blockIdx.x - rest * unsigned(p.blocks));
  at.group = int(rest % unsigned(p.groups));
  at.batch = rest / unsigned(p.groups);
  at.segment = blockIdx.y;
  at.pass = at.batch * p.segments + at.segment;
  at.start = at.segment * p.segment;
  at.stop = at.start + p.segment < p.length ? at.start + p.segment : p.length;
  const int first = block * p.threads + at.warp * kLanes;
  at.channels = max(min(p.group_channels - first, kLanes), 0);
  at.channel0 = at.group * p.group_channels + first;
  at.channel = at.channel0 + at.lane;
  at.exists = at.lane < at.channels;
  if (p.delta_ratio == 1) {
    at.delta0 = at.channel0;
    at.delta_channels = at.channels;
    at.delta_lane = at.lane;
  } else {
    at.delta0 = at.channel0 / p.delta_ratio;
    at.delta_lane = at.exists ? at.channel / p.delta_ratio - at.delta0 : 0;
    at.delta_channels = at.channels > 0 ? (at.channel0 + at.channels - 1) / p.delta_ratio - at.delta0 + 1 : 0;
  }
  return at;
}

}  // namespace vmamba::cuda
