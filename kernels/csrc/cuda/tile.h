// Windows of sequences [batch, channel, time] moved between device memory and shared memory by one warp.
//
// A warp works on 32 channels, one a lane, and walks through time. A window of kSteps steps lies in shared memory as
//   channel-first  32 rows, one a channel, of kSteps elements and 16 bytes: 8 steps of a lane are one or two vector
//                  reads, and the 16 bytes keep the lanes of a read in different banks;
//   channel-last   kSteps rows, one a time step, of 32 elements.
#pragma once

#include "words.h"

namespace vmamba::cuda {

// Strides in bytes. Channel-last: the channels lie side by side; else the time steps do.
struct Sequence {
  char* data = nullptr;
  i64 batch = 0;
  i64 channel = 0;
  i64 time = 0;
  int piece = 0;  // bytes (2, 4, 8 or 16) that divide every address at which a row of a window can start
  bool channel_last = false;

  __host__ __device__ char* at(i64 b, i64 c, i64 t) const { return data + b * batch + c * channel + t * time; }
};

// The part of a sequence that a warp moves at once: up to 32 channels and kSteps steps, of which so many exist.
struct Window {
  i64 batch;
  i64 channel;
  i64 time;
  int channels;
  int steps;
};

template <typename E, int kSteps>
struct Tile {
  static constexpr int kRow = kSteps * sizeof(E) + 16;
  static constexpr int kBytes = kLanes * kRow;
};

// Starts copying a window; what does not exist of it becomes 0. A lane keeps to one column of pieces and goes down the
// rows.
template <typename E, int kSteps>
__device__ __forceinline__ void fetch(char* tile, const Sequence& s, const Window& w, int lane) {
  const int row_bytes = (s.channel_last ? kLanes : kSteps) * int(sizeof(E));
  const int bytes = (s.channel_last ? w.channels : w.steps) * int(sizeof(E));
  const int rows = s.channel_last ? w.steps : w.channels;
  const i64 stride = s.channel_last ? s.time : s.channel;
  const int pitch = s.channel_last ? row_bytes : Tile<E, kSteps>::kRow;
  const int log_piece = 31 - __clz(s.piece);
  const int log_row = 31 - __clz(row_bytes) - log_piece;  // pieces of a row
  const int column = (lane & ((1 << log_row) - 1)) << log_piece;
  const int valid = min(max(bytes - column, 0), s.piece);
  const int at_once = kLanes >> log_row;
  int row = lane >> log_row;
  const char* from = s.at(w.batch, w.channel, w.time) + row * stride + column;
  char* to = tile + row * pitch + column;
#pragma unroll 1
  for (int left = kSteps * int(sizeof(E)) >> log_piece; left > 0; --left) {
    const bool some = row < rows && valid > 0;
    const char* source = some ? from : s.data;
    const int size = some ? valid : 0;
    if (s.piece == 16) {
      copy_aside<16>(to, source, size);
    } else if (s.piece == 8) {
      copy_aside<8>(to, source, size);
    } else if (sizeof(E) == 4 || s.piece == 4) {
      copy_aside<4>(to, source, size);
    } else {
      copy_aside<2>(to, source, size);
    }
    row += at_once;
    from += at_once * stride;
    to += at_once * pitch;
  }
}

// 8 steps of one channel, from a step that is a multiple of 8.
template <typename E, int kSteps>
__device__ __forceinline__ void read8(const char* tile, bool channel_last, int channel, int step, float (&v)[8]) {
  if (channel_last) {
    const E* from = reinterpret_cast<const E*>(tile) + step * kLanes + channel;
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = widen(from[i * kLanes]);
    return;
  }
  const char* from = tile + channel * Tile<E, kSteps>::kRow + step * int(sizeof(E));
  if constexpr (sizeof(E) == 4) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4 four = reinterpret_cast<const float4*>(from)[i];
      v[4 * i] = four.x, v[4 * i + 1] = four.y, v[4 * i + 2] = four.z, v[4 * i + 3] = four.w;
    }
  } else {
    const uint4 eight = *reinterpret_cast<const uint4*>(from);
    widen2(eight.x, v[0], v[1], E{});
    widen2(eight.y, v[2], v[3], E{});
    widen2(eight.z, v[4], v[5], E{});
    widen2(eight.w, v[6], v[7], E{});
  }
}

// 8 steps of one channel into a channel-first tile.
template <typename E, int kSteps>
__device__ __forceinline__ void write8(char* tile, int channel, int step, const float (&v)[8]) {
  char* to = tile + channel * Tile<E, kSteps>::kRow + step * int(sizeof(E));
  if constexpr (sizeof(E) == 4) {
    reinterpret_cast<float4*>(to)[0] = make_float4(v[0], v[1], v[2], v[3]);
    reinterpret_cast<float4*>(to)[1] = make_float4(v[4], v[5], v[6], v[7]);
  } else {
    *reinterpret_cast<uint4*>(to) = make_uint4(narrow2(v[0], v[1], E{}), narrow2(v[2], v[3], E{}),
                                               narrow2(v[4], v[5], E{}), narrow2(v[6], v[7], E{}));
  }
}

// 8 steps of the lane's channel: into a channel-first tile, which `drain` empties, or straight to their place.
// `step` counts from the start of the window.
template <typename E, int kSteps>
__device__ __forceinline__ void put8(char* tile, const Sequence& s, const Window& w, int lane, int step,
                                     const float (&v)[8]) {
  if (!s.channel_last) {
    write8<E, kSteps>(tile, lane, step, v);
  } else if (lane < w.channels) {
    char* to = s.at(w.batch, w.channel + lane, w.time + step);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (step + i < w.steps) *reinterpret_cast<E*>(to) = narrow<E>(v[i]);
      to += s.time;
    }
  }
}

template <int kPiece, typename E>
__device__ __forceinline__ void put_piece(char* to, const char* from, int valid) {
  using P = typename Piece<kPiece>::type;
  if (valid >= kPiece) {
    *reinterpret_cast<P*>(to) = *reinterpret_cast<const P*>(from);
  } else {
#pragma unroll 1
    for (int j = 0; j < valid; j += int(sizeof(E)))
      *reinterpret_cast<E*>(to + j) = *reinterpret_cast<const E*>(from + j);
  }
}

// Writes a channel-first tile to its place; the warp must have filled it and met before.
template <typename E, int kSteps>
__device__ __forceinline__ void drain(const char* tile, const Sequence& s, const Window& w, int lane) {
  constexpr int kLogRow = kSteps * sizeof(E) == 32 ? 5 : kSteps * sizeof(E) == 64 ? 6 : 7;
  const int log_piece = 31 - __clz(s.piece);
  const int log_row = kLogRow - log_piece;
  const int column = (lane & ((1 << log_row) - 1)) << log_piece;
  const int valid = w.steps * int(sizeof(E)) - column;
  const int at_once = kLanes >> log_row;
  const i64 stride = at_once * s.channel;
  int row = lane >> log_row;
  char* to = s.at(w.batch, w.channel + row, w.time) + column;
  const char* from = tile + row * Tile<E, kSteps>::kRow + column;
  if (valid <= 0) return;
#pragma unroll 1
  for (; row < w.channels; row += at_once) {
    if (s.piece == 16) {
      put_piece<16, E>(to, from, valid);
    } else if (s.piece == 8) {
      put_piece<8, E>(to, from, valid);
    } else if (sizeof(E) == 4 || s.piece == 4) {
      put_piece<4, E>(to, from, valid);
    } else {
      put_piece<2, E>(to, from, valid);
    }
    to += stride;
    from += at_once * Tile<E, kSteps>::kRow;
  }
}

}  // namespace vmamba::cuda
