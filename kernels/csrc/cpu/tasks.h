// Tasks on PyTorch's threads, the memory they leave their parts of a sum in, and those sums.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <memory>

#include "../common/types.h"

namespace vmamba {

// As many tasks as a backward is cut into where the shape allows. Never the number of threads: sums must not depend on
// it. CPU_TASKS of vmamba_kernels/native.py is the same number.
constexpr i64 kTasks = 16;

// Runs run(begin, end) over the tasks [0, count); `work` is what they do in all, in multiply-adds of a scan.
template <class Run>
void parallel(i64 work, i64 count, const Run& run) {
  constexpr i64 kSerialWork = 1 << 14;  // below, threads cost more than they bring
  if (count == 0) return;
  if (work < kSerialWork) return run(0, count);
  torch::stable::parallel_for(0, count, 1, run);
}

using Floats = std::unique_ptr<float[]>;

inline Floats scratch(i64 count) { return Floats(new float[count > 0 ? count : 1]); }

// to[i] = sum over parts of from[part * count + i], in the order of the parts.
inline void add_parts(const float* from, i64 parts, i64 count, float* to) {
  constexpr i64 kSlice = 4096;
  parallel(parts * count, ceil_div(count, kSlice), [&](i64 begin, i64 end) {
    const i64 last = end * kSlice < count ? end * kSlice : count;
    for (i64 i = begin * kSlice; i < last; ++i) to[i] = 0.0f;
    for (i64 part = 0; part < parts; ++part)
      for (i64 i = begin * kSlice; i < last; ++i) to[i] += from[part * count + i];
  });
}

}  // namespace vmamba
