// What a causal-convolution kernel is told: sizes, where each tensor lies, and where the results go. No PyTorch.
//
// B batch, G groups of filters, C channels of a group, L length, W taps. A group reads all C channels of x if it is
// `shared`, else its own C of G*C.
#pragma once

#include "../common/selective_scan_args.h"

namespace vmamba {

constexpr i64 kMostTaps = 8;
constexpr i64 kConvTile = 32;  // most time steps of a tile

struct ConvSizes {
  i64 batch = 0;
  i64 groups = 0;
  i64 channels = 0;
  i64 length = 0;
  i64 taps = 0;
  i64 block = 0;            // channels of one task
  i64 tile = 0;             // time steps that are worked on together
  i64 batch_groups = 0;     // backward: a task owns the sequences of one batch group
  std::uint64_t reverse = 0;  // bit g: group g runs backward in time
  bool flip = false;        // the outputs of reversed groups lie in their own time
  bool silu = false;
  bool shared = false;

  bool reversed(i64 group) const { return reverse >> group & 1; }
  i64 blocks() const { return (channels + block - 1) / block; }
  i64 tiles() const { return (length + tile - 1) / tile; }
  i64 forward_tasks() const { return batch * tiles() * blocks(); }
  i64 backward_tasks() const { return batch_groups * blocks(); }
};

struct ConvInputs {
  Sequence x;                    // [B, C or G*C, L]
  const float* weight = nullptr;  // [G, C, W]
  const float* bias = nullptr;    // [G, C] or absent
};

struct ConvForwardArgs {
  ConvSizes sizes;
  ConvInputs in;
  Sequence out;  // [B, G*C, L]
};

struct ConvBackwardArgs {
  ConvSizes sizes;
  ConvInputs in;
  Sequence dout;             // [B, G*C, L]
  Sequence dx;               // as x
  float* partial = nullptr;  // [batch groups, G, W+1, C]: dweight by tap, then dbias
};

// The kernels of one instruction set; each call does the tasks [begin, end).
struct ConvKernels {
  void (*forward)(const ConvForwardArgs&, i64 begin, i64 end);
  void (*backward)(const ConvBackwardArgs&, i64 begin, i64 end);
};

const ConvKernels& portable_conv1d();
const ConvKernels& avx2_conv1d();
const ConvKernels& avx512_conv1d();

}  // namespace vmamba
