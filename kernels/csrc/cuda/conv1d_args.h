// What the kernels of the causal convolution are told.
//
// B batch, G groups of filters, C channels of a group, L length, W taps. A group reads all C channels of x if it is
// `shared`, else its own C of G*C. Every group is causal in its own time: that of x, or its mirror image.
#pragma once

#include "tile.h"

namespace vmamba::cuda::conv1d {

constexpr int kMostTaps = 8;
constexpr int kRun = 8;               // time steps of a thread where they lie side by side: no tap reaches further
constexpr int kForwardThreads = 128;
constexpr int kForwardSteps = 16;     // time steps of a thread where channels lie side by side
constexpr int kWarps = 8;             // of a backward block where channels lie side by side, one piece of time each
constexpr int kBackwardSteps = 16;    // time steps of such a piece, at most
// Channels of a thread of such a block, for kernels made for so many taps: what fits into 128 registers.
__host__ __device__ constexpr int columns_of(int taps) { return taps == 4 ? 4 : 2; }
constexpr int kRowWarps = 4;          // of a backward block where time steps lie side by side
constexpr int kReductionThreads = 256;

struct Conv {
  i64 batch = 0;
  i64 length = 0;
  int groups = 0;
  int channels = 0;
  int taps = 0;
  std::uint64_t reverse = 0;  // bit g: group g runs backward in time
  bool flip = false;          // outputs (and their gradients) of reversed groups lie in their own time
  bool silu = false;
  bool shared = false;
  Sequence x;
  const float* weight = nullptr;  // [G, C, W], 16-byte aligned
  const float* bias = nullptr;    // [G, C] or absent

  __host__ __device__ bool reversed(int g) const { return reverse >> g & 1; }
  __host__ __device__ bool mirrored(int g) const { return !flip && reversed(g); }
};

struct Forward {
  Conv conv;
  Sequence out;
};

struct Backward {
  Conv conv;
  Sequence dout;
  Sequence dx;
  i64 pieces = 1;            // parts of time of one batch
  int steps = 0;             // channel-last: time steps of a warp
  float* partial = nullptr;  // [B * pieces, G, W+1, C]: dweight by tap, then dbias
};

struct Reduction {
  i64 parts = 0;
  int groups = 0;
  int channels = 0;
  int taps = 0;
  const float* partial = nullptr;
  float* dweight = nullptr;  // [G, C, W]
  float* dbias = nullptr;    // [G, C] or absent
};

}  // namespace vmamba::cuda::conv1d
