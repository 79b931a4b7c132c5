// 16 bytes of a tensor's elements, moved at once where their addresses allow it, and without ever touching what lies
// beyond the last one.
#pragma once

#include "pooled_args.h"

namespace vmamba::cuda {

#ifdef VMAMBA_EMULATED
inline float bits_as_float(std::uint32_t bits) { return float_of(bits); }
inline std::uint32_t float_as_bits(float x) { return bits_of(x); }
#else
__device__ __forceinline__ float bits_as_float(std::uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ std::uint32_t float_as_bits(float x) { return __float_as_uint(x); }
#endif

// Elements of T that one thread works on.
template <typename T>
constexpr int kVector = 16 / int(sizeof(T));

template <typename T, int kCount>
__device__ __forceinline__ void read_vector(const char* from, int piece, int valid, float (&v)[kCount]) {
  constexpr int kWords = kCount * int(sizeof(T)) / 4;
  if (piece >= 8 && valid == kCount && kWords % 2 == 0) {
    std::uint32_t words[kWords];
    if (piece == 16 && kWords % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kWords / 4; ++i) {
        const uint4 four = reinterpret_cast<const uint4*>(from)[i];
        words[4 * i] = four.x, words[4 * i + 1] = four.y, words[4 * i + 2] = four.z, words[4 * i + 3] = four.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kWords / 2; ++i) {
        const uint2 two = reinterpret_cast<const uint2*>(from)[i];
        words[2 * i] = two.x, words[2 * i + 1] = two.y;
      }
    }
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (sizeof(T) == 4)
        v[i] = bits_as_float(words[i]);
      else
        widen2(words[i], v[2 * i], v[2 * i + 1], T{});
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) v[i] = i < valid ? widen(reinterpret_cast<const T*>(from)[i]) : 0.0f;
}

template <typename T, int kCount>
__device__ __forceinline__ void write_vector(char* to, int piece, int valid, const float (&v)[kCount]) {
  constexpr int kWords = kCount * int(sizeof(T)) / 4;
  if (piece >= 8 && valid == kCount && kWords % 2 == 0) {
    std::uint32_t words[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (sizeof(T) == 4)
        words[i] = float_as_bits(v[i]);
      else
        words[i] = narrow2(v[2 * i], v[2 * i + 1], T{});
    }
    if (piece == 16 && kWords % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kWords / 4; ++i)
        reinterpret_cast<uint4*>(to)[i] = uint4{words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]};
    } else {
#pragma unroll
      for (int i = 0; i < kWords / 2; ++i) reinterpret_cast<uint2*>(to)[i] = uint2{words[2 * i], words[2 * i + 1]};
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    if (i < valid) reinterpret_cast<T*>(to)[i] = narrow<T>(v[i]);
}

// The largest of 16, 8 and 1 bytes that divides an address and the strides joined with it.
inline int piece_of_bits(i64 bits) { return bits % 16 == 0 ? 16 : bits % 8 == 0 ? 8 : 1; }

// The piece of every vector of an image: channels of a token, or tokens of a channel.
inline int image_piece(const Pooled& p, const Image& x) {
  i64 bits = i64(reinterpret_cast<std::uintptr_t>(x.data));
  if (p.batch > 1) bits |= x.batch;
  if (p.groups > 1) bits |= x.group;
  if (p.channel_last) {
    if (p.tokens > 1) bits |= x.token;
  } else if (p.channels > 1) {
    bits |= x.channel;
  }
  return piece_of_bits(bits);
}

// The piece of the rows [.., D] or [.., KD] of float32 that start at an address.
inline int weights_piece(const Pooled& p, const float* weights) {
  return piece_of_bits(i64(reinterpret_cast<std::uintptr_t>(weights)) | i64(p.channels) * 4) == 16 ? 16 : 4;
}

}  // namespace vmamba::cuda
