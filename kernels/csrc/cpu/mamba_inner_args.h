// What a mamba_inner kernel is told: sizes, where each tensor lies, and where the results go. Plain data, no PyTorch.
//
// B batch, G directions, E channels of a direction, L tokens, R rank of the step sizes, N states per channel.
// Rows are of tokens: u has G*E channels; x_dbl, for each direction in turn, R step-size inputs, N of B and N of C.
#pragma once

#include "../common/selective_scan_args.h"

namespace vmamba {

struct InnerSizes {
  i64 batch = 0;
  i64 directions = 0;
  i64 channels = 0;  // E, whole vectors of every instruction set
  i64 length = 0;
  i64 rank = 0;
  i64 states = 0;
  i64 chunk = 0;               // steps between two stored states
  i64 kept = 0;                // states that there is room for, at least `chunks`
  i64 block = 0;               // channels that are walked together
  i64 batch_groups = 0;        // backward: a task owns a direction of the images of one batch group
  i64 block_groups = 0;        // and in it the blocks of one block group
  std::uint64_t reverse = 0;   // bit g: direction g begins with the last token
  float scale = 1.0f;

  bool reversed(i64 g) const { return reverse >> g & 1; }
  i64 section() const { return rank + 2 * states; }
  i64 row() const { return directions * section(); }
  i64 all_channels() const { return directions * channels; }
  i64 chunks() const { return (length + chunk - 1) / chunk; }
  i64 blocks() const { return (channels + block - 1) / block; }
  i64 tasks() const { return batch * blocks(); }
  i64 backward_tasks() const { return batch_groups * directions * block_groups; }
  i64 weights() const { return rank + states + 2; }  // rows of the sums for dt_weight, A, D and the bias
  i64 work() const { return batch * all_channels() * length * states; }
};

// [B, L, E] with the channels side by side.
struct TokenRows {
  float* data = nullptr;
  i64 batch_stride = 0;
  i64 stride = 0;
};

struct InnerInputs {
  const float* u = nullptr;           // [B, L, G*E]
  const float* x_dbl = nullptr;       // [B, L, G*(R+2N)]
  const float* dt_weight = nullptr;   // [G, E, R]
  const float* A = nullptr;           // [G*E, N]
  const float* D = nullptr;           // [G*E]
  const float* delta_bias = nullptr;  // [G*E]
  TokenRows z;
};

struct InnerForwardArgs {
  InnerSizes sizes;
  InnerInputs in;
  float* scanned = nullptr;  // [B, L, E], the sum of the directions; may be y
  float* y = nullptr;        // [B, L, E]
  float* states = nullptr;   // [B, kept, N, G*E], those that the chunks enter with, or absent
};

struct InnerBackwardArgs {
  InnerSizes sizes;
  InnerInputs in;
  TokenRows dout;
  const float* scanned = nullptr;
  const float* states = nullptr;
  float* dy = nullptr;       // [B, L, E], scratch: the gradient of `scanned`
  TokenRows dz;
  float* du = nullptr;       // [B, L, G*E]
  float* dx_dbl = nullptr;   // [block groups, B, L, G*(R+2N)]
  float* weights = nullptr;  // [batch groups, G, R + N + 2, E]
};

// The kernels of one instruction set; each call does the tasks, or the rows of tokens, [begin, end).
struct InnerKernels {
  void (*forward)(const InnerForwardArgs&, i64 begin, i64 end);
  void (*gate_backward)(const InnerBackwardArgs&, i64 begin, i64 end);
  void (*backward)(const InnerBackwardArgs&, i64 begin, i64 end);
};

const InnerKernels& portable_mamba_inner();
const InnerKernels& avx2_mamba_inner();
const InnerKernels& avx512_mamba_inner();

}  // namespace vmamba
