// What the kernels of ss2d are told, and how they lay out the shared memory of a thread block.
//
// B batch, K directions, C channels, L positions of the image, R rank of the step sizes, N states per channel. A row of
// x_dbl holds for each direction R step-size inputs, N of B and N of C: J = K * (R + 2N) numbers.
//
// A thread block owns one image and `width` channels of it, and takes the directions in turn, so that their sum needs
// neither atomics nor a second pass. Within a direction the scan is cut into tiles of `slots` times 8 steps. A thread owns
// one channel and the 8 steps of its slot; a warp has 32 / width slots.
#pragma once

#include "scan_args.h"

namespace vmamba::cuda {

constexpr int kSteps = 8;             // of a slot
constexpr int kSs2dThreads = 256;     // most of a block
constexpr int kStoredEvery = kChunk;  // steps between two stored states

struct Ss2d {
  i64 batch = 0;
  i64 length = 0;
  int directions = 0;
  int channels = 0;
  int rank = 0;
  int states = 0;
  int width = 32;           // channels of a block: 8, 16 or 32
  int threads = 256;        // of a block
  bool sums_shared = true;  // the sums over directions lie in shared memory, else in `sums`
  Sequence x;               // any strides
  Sequence x_dbl;           // [B, J, L], the J side by side
  const float* dt_weight = nullptr;   // [K, C, R]
  const float* A = nullptr;           // [K*C, N]
  const float* D = nullptr;           // [K*C] or absent
  const float* delta_bias = nullptr;  // [K*C] or absent
  const i64* maps = nullptr;          // [K, L]: the position that each scan step reads
  float* sums = nullptr;              // [B, blocks, L, width] or absent

  __host__ __device__ int section() const { return rank + 2 * states; }
  __host__ __device__ i64 row() const { return i64(directions) * section(); }
  __host__ __device__ int blocks() const { return (channels + width - 1) / width; }
  __host__ __device__ int slots() const { return threads / width; }
  __host__ __device__ int tile() const { return slots() * kSteps; }
  __host__ __device__ i64 stored() const { return (length + kStoredEvery - 1) / kStoredEvery - 1; }
};

struct Ss2dForward {
  Ss2d ss2d;
  Sequence out;                    // any strides
  bool out_f32 = true;             // else x's type
  float* stored_states = nullptr;  // [B, stored, N, K*C], one every kStoredEvery steps, or absent
};

struct Ss2dBackward {
  Ss2d ss2d;
  int groups = 1;                        // thread blocks that share the channels of an image, each some blocks in turn
  bool tallies_shared = true;            // the sums over time lie in shared memory, else in `tallies`
  Sequence dout;                         // any strides
  bool dout_f32 = true;                  // else x's type
  Sequence dx;                           // any strides
  const float* stored_states = nullptr;  // [B, stored, N, K*C]
  float* tallies = nullptr;              // [B * groups, tallies of a block, threads] or absent
  float* partial_rows = nullptr;         // [groups, B, L, J]: dx_dbl of each group of blocks
  float* partial_weights = nullptr;      // [B, R + N + 2, K*C]: d dt_weight, dA, d delta_bias, dD of each image
};

struct Ss2dReduction {
  Ss2d ss2d;
  int groups = 1;
  const float* partial_rows = nullptr;
  const float* partial_weights = nullptr;
  Sequence dx_dbl;                // [B, J, L], any strides
  float* d_dt_weight = nullptr;   // [K, C, R]
  float* dA = nullptr;            // [K*C, N]
  float* dD = nullptr;            // [K*C] or absent
  float* d_delta_bias = nullptr;  // [K*C] or absent
};

__host__ __device__ inline int round_up(int count, int unit) { return (count + unit - 1) / unit * unit; }

// Where things lie in shared memory, in floats; every offset is a multiple of 16 bytes.
struct Ss2dMemory {
  // A warp's rows of x_dbl as float32: [slot of the warp][step][step-size inputs, B, C], each part padded with zeros.
  int B, C, pitch, slot_pitch;
  int weights, weights_pitch;  // dt_weight of the direction and block: [R][width]
  int decay;                   // log2(e) A: [N][width]
  int carry;                   // the state between two tiles, and the one before: [2][N][width]
  int totals;                  // what each slot does to a state that enters it: [2][kStates][2 or 3][threads]
  int rows;                    // [warps][slots of a warp] rows as above
  int channels, channels_pitch;  // backward: a warp's values to be summed over channels, [warps][steps of a warp][width]
  int tallies;                 // backward: sums over time [tally_rows][threads]
  int sums;                    // [L][width]
  int ranks, states;           // R and N, padded

  __host__ __device__ Ss2dMemory(const Ss2d& p, int states_at_once, bool backward) {
    ranks = round_up(p.rank, 4);
    states = round_up(p.states, states_at_once);
    B = ranks;
    C = ranks + states;
    pitch = round_up(C + states, 4);
    slot_pitch = kSteps * pitch + 4;
    weights = 0;
    weights_pitch = p.width + 4;
    decay = weights + ranks * weights_pitch;
    carry = decay + states * p.width;
    totals = carry + 2 * states * p.width;
    rows = totals + 2 * states_at_once * (backward ? 3 : 2) * p.threads;
    channels = rows + p.slots() * slot_pitch;
    channels_pitch = p.width + 4;
    tallies = channels + (backward ? p.tile() * channels_pitch : 0);
    sums = tallies;
  }

  // Rows of `tallies`: d dt_weight, dA, d delta_bias, dD.
  __host__ __device__ int tally_rows() const { return ranks + states + 2; }

  i64 bytes(const Ss2d& p, bool tallies_shared) const {
    const i64 floats = i64(sums) + (tallies_shared ? tally_rows() * p.threads : 0) +
                       (p.sums_shared && p.directions > 1 ? p.length * p.width : 0);
    return floats * i64(sizeof(float));
  }
};

}  // namespace vmamba::cuda
