// What an ss2d kernel is told: sizes, where each tensor lies, and where the results go. Plain data, no PyTorch.
//
// B batch, K directions, C channels, L positions of the image, R rank of the step sizes, N states per channel.
// A row of x_dbl holds, for each direction in turn, R step-size inputs, N of B and N of C: J = K * (R + 2N) numbers.
#pragma once

#include "../common/selective_scan_args.h"

namespace vmamba {

struct Ss2dSizes {
  i64 batch = 0;
  i64 directions = 0;
  i64 channels = 0;
  i64 length = 0;
  i64 rank = 0;
  i64 states = 0;
  i64 chunk = 0;         // scan steps between two stored states
  i64 block = 0;         // channels that are walked together
  i64 batch_groups = 0;  // backward: a task owns the images of one batch group and the blocks of one block group
  i64 block_groups = 0;

  i64 section() const { return rank + 2 * states; }
  i64 row() const { return directions * section(); }
  i64 chunks() const { return (length + chunk - 1) / chunk; }
  i64 blocks() const { return (channels + block - 1) / block; }
  i64 tasks() const { return batch * blocks(); }
  i64 backward_tasks() const { return batch_groups * block_groups; }
};

struct Ss2dInputs {
  Sequence x;                         // [B, C, L]
  const float* x_dbl = nullptr;       // [B, L, J]
  const float* dt_weight = nullptr;   // [K, C, R]
  const float* A = nullptr;           // [K*C, N]
  const float* D = nullptr;           // [K*C] or absent
  const float* delta_bias = nullptr;  // [K*C] or absent
  const i64* maps = nullptr;          // [K, L]: the position that each scan step reads
};

struct Ss2dForwardArgs {
  Ss2dSizes sizes;
  Ss2dInputs in;
  Sequence out;             // [B, C, L]
  float* states = nullptr;  // [B, chunks - 1, N, K*C] or absent
};

// Sums over the images of a batch group, or over the blocks of a block group, are finished by the host.
struct Ss2dBackwardArgs {
  Ss2dSizes sizes;
  Ss2dInputs in;
  Sequence dout;                  // [B, C, L]
  const float* states = nullptr;  // [B, chunks - 1, N, K*C]
  Sequence dx;                    // [B, C, L]
  float* dx_dbl = nullptr;        // [block groups, B, L, J]
  float* d_dt_weight = nullptr;   // [batch groups, K, R, C]
  float* dA = nullptr;            // [batch groups, K, N, C]
  float* d_delta_bias = nullptr;  // [batch groups, K, C]
  float* dD = nullptr;            // [batch groups, C]
};

// The kernels of one instruction set; each call does the tasks [begin, end).
struct Ss2dKernels {
  void (*forward)(const Ss2dForwardArgs&, i64 begin, i64 end);
  void (*backward)(const Ss2dBackwardArgs&, i64 begin, i64 end);
};

const Ss2dKernels& portable_ss2d();
const Ss2dKernels& avx2_ss2d();
const Ss2dKernels& avx512_ss2d();

}  // namespace vmamba
