// The words of CUDA that the kernels use beyond the language: copies that run aside, fast arithmetic, narrow types.
// With VMAMBA_EMULATED the same kernels are compiled by a C++ compiler and run without a GPU (tests/kernels/cuda_emulation).
#pragma once

#include "../common/types.h"

#ifdef VMAMBA_EMULATED
#include "emulated_words.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define VMAMBA_SHARED(name) extern __shared__ __align__(16) char name[]
#endif

namespace vmamba::cuda {

using vmamba::Type;
using vmamba::i64;

#ifndef VMAMBA_EMULATED
struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};
#endif

constexpr int kLanes = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <int kBytes>
struct Piece;
template <>
struct Piece<2> {
  using type = std::uint16_t;
};
template <>
struct Piece<4> {
  using type = std::uint32_t;
};
template <>
struct Piece<8> {
  using type = uint2;
};
template <>
struct Piece<16> {
  using type = uint4;
};

#ifndef VMAMBA_EMULATED

// The same address of device memory, which the compiler then keeps and does not put together again at every use.
template <typename P>
__device__ __forceinline__ P* pinned(P* address) {
  asm("" : "+l"(address));
  __builtin_assume(__isGlobal(address));
  return address;
}

// 2^x; results below 2^-126 are 0.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Copies `valid` of kBytes bytes to shared memory, aside, and fills the rest with zeros.
template <int kBytes>
__device__ __forceinline__ void copy_aside(char* to, const char* from, int valid) {
  if constexpr (kBytes == 2) {
    *reinterpret_cast<std::uint16_t*>(to) = valid ? *reinterpret_cast<const std::uint16_t*>(from) : std::uint16_t(0);
  } else {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
    if constexpr (kBytes == 16)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(valid) : "memory");
    else
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(kBytes), "r"(valid)
                   : "memory");
  }
}
__device__ __forceinline__ void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kOpen of this thread's closed groups of copies are still under way.
template <int kOpen>
__device__ __forceinline__ void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kOpen) : "memory");
}

__device__ __forceinline__ void widen2(std::uint32_t pair, float& low, float& high, BFloat16) {
  low = __uint_as_float(pair << 16);
  high = __uint_as_float(pair & 0xffff0000u);
}
__device__ __forceinline__ void widen2(std::uint32_t pair, float& low, float& high, Float16) {
  const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&pair));
  low = both.x;
  high = both.y;
}
__device__ __forceinline__ std::uint32_t narrow2(float low, float high, BFloat16) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&both);
}
__device__ __forceinline__ std::uint32_t narrow2(float low, float high, Float16) {
  const __half2 both = __floats2half2_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&both);
}

#endif

__device__ __forceinline__ float widen(float x) { return x; }
template <typename E>
__device__ __forceinline__ float widen(E x) {
  float low, high;
  widen2(x.bits, low, high, E{});
  return low;
}

template <typename E>
__device__ __forceinline__ E narrow(float x) {
  if constexpr (sizeof(E) == 4) {
    return x;
  } else {
    return E{static_cast<std::uint16_t>(narrow2(x, 0.0f, E{}))};
  }
}

}  // namespace vmamba::cuda
