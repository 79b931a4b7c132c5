// Neighbours in memory, held as the words they are read in, and the filters and the SiLU that meet them.
#pragma once

#include <cstring>

#include "conv1d_args.h"
#include "softplus.h"

namespace vmamba::cuda::conv1d {

template <typename T, int kCount>
struct Vector {
  static constexpr int kBytes = kCount * int(sizeof(T));
  std::uint32_t word[kBytes / 4];
};

template <int kBytes>
__device__ __forceinline__ bool aligned(const void* address, i64 stride = 0) {
  return ((i64(reinterpret_cast<std::uintptr_t>(address)) | stride) & (kBytes - 1)) == 0;
}

// Elements [first, last) of a vector, zeros elsewhere: `wide` if all are there and every piece is aligned.
template <typename T, int kCount>
__device__ __forceinline__ Vector<T, kCount> load(const char* from, int first, int last, bool wide) {
  using V = Vector<T, kCount>;
  constexpr int kPiece = V::kBytes < 16 ? V::kBytes : 16;
  V v;
  if (wide) {
#pragma unroll
    for (int i = 0; i < V::kBytes / kPiece; ++i) {
      using P = typename Piece<kPiece>::type;
      const P piece = reinterpret_cast<const P*>(from)[i];
      memcpy(v.word + i * kPiece / 4, &piece, kPiece);
    }
    return v;
  }
#pragma unroll
  for (int i = 0; i < V::kBytes / 4; ++i) v.word[i] = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i < first || i >= last) continue;
    if constexpr (sizeof(T) == 4)
      v.word[i] = reinterpret_cast<const std::uint32_t*>(from)[i];
    else
      v.word[i / 2] |= std::uint32_t(reinterpret_cast<const std::uint16_t*>(from)[i]) << 16 * (i % 2);
  }
  return v;
}

template <typename T, int kCount>
__device__ __forceinline__ Vector<T, kCount> none() {
  Vector<T, kCount> v;
#pragma unroll
  for (int i = 0; i < Vector<T, kCount>::kBytes / 4; ++i) v.word[i] = 0;
  return v;
}

template <typename T, int kCount>
__device__ __forceinline__ void widen(const Vector<T, kCount>& v, float* to) {
  if constexpr (sizeof(T) == 4) {
    memcpy(to, v.word, sizeof v.word);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 2) widen2(v.word[i / 2], to[i], to[i + 1], T{});
  }
}

template <typename T, int kCount>
__device__ __forceinline__ void store(char* to, const float* from, int first, int last, bool wide) {
  using V = Vector<T, kCount>;
  constexpr int kPiece = V::kBytes < 16 ? V::kBytes : 16;
  V v;
  if constexpr (sizeof(T) == 4) {
    memcpy(v.word, from, sizeof v.word);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 2) v.word[i / 2] = narrow2(from[i], from[i + 1], T{});
  }
  if (wide) {
#pragma unroll
    for (int i = 0; i < V::kBytes / kPiece; ++i) {
      using P = typename Piece<kPiece>::type;
      P piece;
      memcpy(&piece, v.word + i * kPiece / 4, kPiece);
      reinterpret_cast<P*>(to)[i] = piece;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i < first || i >= last) continue;
    if constexpr (sizeof(T) == 4)
      reinterpret_cast<std::uint32_t*>(to)[i] = v.word[i];
    else
      reinterpret_cast<std::uint16_t*>(to)[i] = std::uint16_t(v.word[i / 2] >> 16 * (i % 2));
  }
}

// The filters of kCount channels of a group, tap kTaps - 1 that of the present. With fewer taps than kTaps the first
// `skip` do not exist.
template <int kTaps, int kCount>
struct Filters {
  float w[kTaps][kCount];
  float bias[kCount];
  int skip;

  __device__ __forceinline__ Filters(const Conv& p, int group, int channel, int count)
      : skip(kTaps == 4 ? 0 : kTaps - p.taps) {
    const i64 first = i64(group) * p.channels + channel;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      bias[i] = p.bias && i < count ? p.bias[first + i] : 0.0f;
      if constexpr (kTaps == 4) {
        const float4 four =
            i < count ? reinterpret_cast<const float4*>(p.weight)[first + i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        w[0][i] = four.x, w[1][i] = four.y, w[2][i] = four.z, w[3][i] = four.w;
      } else {
#pragma unroll
        for (int j = 0; j < kTaps; ++j) w[j][i] = i < count && j >= skip ? p.weight[(first + i) * p.taps + j - skip] : 0.0f;
      }
    }
  }
  // Absent taps are left out and not multiplied by zero: what they would read may be no number.
  __device__ __forceinline__ bool has(int tap) const { return kTaps == 4 || tap >= skip; }
};

__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.0f + exp2_fast(-kLog2e * x)); }

// The derivative of x * sigmoid(x).
__device__ __forceinline__ float silu_derivative(float x) {
  const float s = sigmoid(x);
  return s * fmaf(x, 1.0f - s, 1.0f);
}

}  // namespace vmamba::cuda::conv1d
