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
constexpr int kMapUnit = 256;         // every tile divides it; rows of the map repeat their last position up to a multiple

// [batch, channel, position] of any strides, in bytes.
struct Image {
  char* data = nullptr;
  i64 batch = 0;
  i64 channel = 0;
  unsigned position = 0;

  __host__ __device__ char* at(i64 b, i64 c) const { return data + b * batch + c * channel; }
};

// Where things lie in shared memory, in floats; every offset is a multiple of 16 bytes.
struct Ss2dMemory {
  // Rows of x_dbl as float32: the step-size inputs, B and C of a row, each padded with zeros, are cut into fours, and lie
  // as [slot][four][step][4], so that the 8 steps of a four have fixed distances.
  int B = 0, C = 0, slot_pitch = 0;
  int weights = 0, weights_pitch = 0;    // dt_weight of the direction and block: [R][width]
  int decay = 0;                         // log2(e) A: [N][width]
  int carry = 0;                         // the state between two tiles, and the one before: [2][N][width]
  int totals = 0;                        // what each slot does to a state: [2][kStates][2 or 3][threads]
  int rows = 0;                          // [slots] rows as above
  int channels = 0, channels_pitch = 0;  // backward: values to be summed over channels, [steps][width]
  int tallies = 0;                       // backward: sums over time, [tally_rows][threads]
  int sums = 0;                          // [L][width]
  int ranks = 0, states = 0;             // R and N, padded

  // Rows of `tallies`: d dt_weight, dA, d delta_bias, dD.
  __host__ __device__ int tally_rows() const { return ranks + states + 2; }
};

// Steps and positions are counted in 32 bits, and so are the bytes between two positions; addresses have 64.
struct Ss2d {
  i64 batch = 0;
  i64 length = 0;
  int directions = 0;
  int channels = 0;
  int rank = 0;
  int states = 0;
  int width = 32;           // channels of a block: 8, 16 or 32
  int log_width = 5;
  int threads = 256;        // of a block
  // Reading x_dbl: lanes side by side along a row, rows read at once, and rows of a warp in all.
  int log_columns = 5;
  int rows_at_once = 1;
  int warp_steps = 8;
  bool sums_shared = true;  // the sums over directions lie in shared memory, else in `sums`
  Image x;
  Image x_dbl;              // [B, J, L], the J side by side
  const float* dt_weight = nullptr;   // [K, C, R]
  const float* A = nullptr;           // [K*C, N]
  const float* D = nullptr;           // [K*C] or absent
  const float* delta_bias = nullptr;  // [K*C] or absent
  const unsigned* maps = nullptr;     // [K, map_length()]: the position that each scan step reads
  float* sums = nullptr;              // [B, blocks, L, width] or absent
  Ss2dMemory memory;

  __host__ __device__ int section() const { return rank + 2 * states; }
  __host__ __device__ i64 row() const { return i64(directions) * section(); }
  __host__ __device__ int blocks() const { return (channels + width - 1) >> log_width; }
  __host__ __device__ int slots() const { return threads >> log_width; }
  __host__ __device__ int tile() const { return slots() * kSteps; }
  __host__ __device__ i64 map_length() const { return (length + kMapUnit - 1) / kMapUnit * kMapUnit; }
  __host__ __device__ i64 stored() const { return (length + kStoredEvery - 1) / kStoredEvery - 1; }
};

struct Ss2dForward {
  Ss2d ss2d;
  Image out;
  bool out_f32 = true;             // else x's type
  float* stored_states = nullptr;  // [B, stored, N, K*C], one every kStoredEvery steps, or absent
};

struct Ss2dBackward {
  Ss2d ss2d;
  int groups = 1;                        // thread blocks that share the channels of an image, each some blocks in turn
  bool tallies_shared = true;            // the sums over time lie in shared memory, else in `tallies`
  bool atomics = false;                  // the groups add their dx_dbl by atomics
  Image dout;
  bool dout_f32 = true;                  // else x's type
  Image dx;
  const float* stored_states = nullptr;  // [B, stored, N, K*C]
  float* tallies = nullptr;              // [B * groups, tallies of a block, threads] or absent
  float* partial_rows = nullptr;         // [parts, B, L, J]: dx_dbl of each group, or zeros to which they are added
  float* partial_weights = nullptr;      // [B, R + N + 2, K*C]: d dt_weight, dA, d delta_bias, dD of each image

  int parts() const { return atomics ? 1 : groups; }
};

struct Ss2dReduction {
  Ss2d ss2d;
  int parts = 1;
  const float* partial_rows = nullptr;
  const float* partial_weights = nullptr;
  Image dx_dbl;                   // [B, J, L]
  float* d_dt_weight = nullptr;   // [K, C, R]
  float* dA = nullptr;            // [K*C, N]
  float* dD = nullptr;            // [K*C] or absent
  float* d_delta_bias = nullptr;  // [K*C] or absent
};

}  // namespace vmamba::cuda
