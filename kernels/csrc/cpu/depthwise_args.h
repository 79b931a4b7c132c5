// What a kernel of the depthwise convolution is told: dense images [B, H, W, C] in float32. Plain data, no PyTorch.
#pragma once

#include "../common/types.h"

namespace vmamba {

constexpr i64 kDepthwiseTaps = 9;
constexpr i64 kDepthwiseSums = kDepthwiseTaps + 1;  // with the bias
constexpr i64 kDepthwiseAlign = 16;                 // channels of a row of taps: whole vectors of every instruction set

struct DepthwiseArgs {
  i64 batch = 0;
  i64 height = 0;
  i64 columns = 0;
  i64 channels = 0;
  i64 rows = 0;                // forward: rows of an image that are a task
  i64 block = 0;               // channels that walk down together, backward: a task; a multiple of kDepthwiseAlign
  const float* x = nullptr;    // [B, H, W, C]
  const float* taps = nullptr; // [9 taps row by row, bias][C padded with zeros]
  float* y = nullptr;          // [B, H, W, C]; forward
  const float* dy = nullptr;   // [B, H, W, C]; backward
  float* dx = nullptr;         // [B, H, W, C]; backward
  float* sums = nullptr;       // [B, 9 taps, bias][C]: gradients of one image; backward

  i64 padded() const { return ceil_div(channels, kDepthwiseAlign) * kDepthwiseAlign; }
  i64 parts() const { return ceil_div(height, rows); }
  i64 blocks() const { return ceil_div(channels, block); }
};

struct DepthwiseKernels {
  void (*forward)(const DepthwiseArgs&, i64 begin, i64 end);   // tasks of batch * parts
  void (*backward)(const DepthwiseArgs&, i64 begin, i64 end);  // tasks of batch * blocks
};

const DepthwiseKernels& portable_depthwise();
const DepthwiseKernels& avx2_depthwise();
const DepthwiseKernels& avx512_depthwise();

}  // namespace vmamba
