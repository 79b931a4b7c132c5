// What a selective-scan kernel is told: sizes, where each tensor lies, and where the results go.
// Plain data, no PyTorch: shared by the host code and by the kernels of every instruction set.
#pragma once

#include "types.h"

namespace vmamba {

// [batch, channel, time] anywhere in memory; strides in elements.
struct Sequence {
  void* data = nullptr;
  Type type = Type::f32;
  i64 batch_stride = 0;
  i64 channel_stride = 0;
  i64 time_stride = 0;
};

// [batch, group, state, time] anywhere in memory; strides in elements.
struct Projection {
  void* data = nullptr;
  Type type = Type::f32;
  i64 batch_stride = 0;
  i64 group_stride = 0;
  i64 state_stride = 0;
  i64 time_stride = 0;
};

struct ScanSizes {
  i64 batch = 0;
  i64 groups = 0;
  i64 group_channels = 0;
  i64 length = 0;
  i64 states = 0;
  i64 chunk = 0;           // time steps between two stored states
  i64 block = 0;           // channels of one task, all of one group
  i64 delta_ratio = 1;     // channels that share one delta channel

  i64 channels() const { return groups * group_channels; }
  i64 chunks() const { return (length + chunk - 1) / chunk; }
  i64 blocks() const { return (group_channels + block - 1) / block; }
  i64 tasks() const { return batch * groups * blocks(); }
  i64 work() const { return batch * channels() * length * states; }
};

struct ScanInputs {
  Sequence u;
  Sequence delta;
  Projection B;
  Projection C;
  const float* A = nullptr;           // [KD, N]
  const float* D = nullptr;           // [KD] or absent
  const float* delta_bias = nullptr;  // [DD] or absent
  bool softplus = true;
};

struct ForwardArgs {
  ScanSizes sizes;
  ScanInputs in;
  Sequence out;
  float* last_state = nullptr;  // [B, KD, N]
  float* states = nullptr;      // [B, chunks - 1, N, KD] or absent
};

struct BackwardArgs {
  ScanSizes sizes;
  ScanInputs in;
  Sequence dout;
  const float* dlast_state = nullptr;  // [B, KD, N] or absent
  const float* states = nullptr;       // [B, chunks - 1, N, KD]
  Sequence du;
  Sequence ddelta;                // one channel per channel of u
  float* dA = nullptr;            // [B, KD, N]
  float* dD = nullptr;            // [B, KD] or absent
  float* ddelta_bias = nullptr;   // [B, KD] or absent
  float* dB = nullptr;            // [B, K, blocks, L, N]
  float* dC = nullptr;            // [B, K, blocks, L, N]
};

// The kernels of one instruction set; each call does the tasks [begin, end).
struct ScanKernels {
  const char* name;
  void (*forward)(const ForwardArgs&, i64 begin, i64 end);
  void (*backward)(const BackwardArgs&, i64 begin, i64 end);
};

const ScanKernels& portable_kernels();
const ScanKernels& avx2_kernels();
const ScanKernels& avx512_kernels();

}  // namespace vmamba
