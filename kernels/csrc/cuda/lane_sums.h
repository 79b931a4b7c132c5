// Sums over the 32 lanes of a warp of many values at once.
#pragma once

#include "words.h"

namespace vmamba::cuda {

// One of two values of every lane, added to that of the lane across `bit`: lanes without the bit keep the first and give
// the second away, the others the reverse.
__device__ __forceinline__ float exchange_add(float first, float second, int bit, int lane) {
  const bool upper = lane & bit;
  const float give = upper ? first : second;
  const float keep = upper ? second : first;
  return keep + __shfl_xor_sync(kAllLanes, give, bit);
}

// Sums over all lanes of kValues values (a power of two up to 32) that come one after another, from the last to the
// first; a value costs about one shuffle and not five, and few of them are alive at a time.
template <int kValues>
struct LaneSums {
  float waiting[6];  // by level; level l holds a sum over 2^l lanes

  // `index` must be a constant once loops are unrolled.
  __device__ __forceinline__ void add(int index, float value, int lane) {
#pragma unroll
    for (int level = 0, bit = 1; bit < kValues; ++level, bit *= 2) {
      if (index & bit) {
        waiting[level] = value;
        return;
      }
      value = exchange_add(value, waiting[level], bit, lane);
    }
#pragma unroll
    for (int bit = kValues; bit < kLanes; bit *= 2) value += __shfl_xor_sync(kAllLanes, value, bit);
    waiting[5] = value;
  }

  // After value 0: in lane l, the sum of value l % kValues.
  __device__ __forceinline__ float result() const { return waiting[5]; }
};

}  // namespace vmamba::cuda
