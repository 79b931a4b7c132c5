// What a kernel of the root mean square norm is told: dense rows of channels in float32. Plain data, no PyTorch.
#pragma once

#include "../common/types.h"

namespace vmamba {

struct RmsNormArgs {
  i64 rows = 0;
  i64 channels = 0;
  i64 rows_per_task = 0;
  float eps = 0.0f;
  const float* x = nullptr;       // [rows, channels]
  const float* weight = nullptr;  // [channels]
  const float* dy = nullptr;      // [rows, channels]; backward
  float* to = nullptr;            // [rows, channels]: y, or dx
  float* dweight = nullptr;       // [tasks, channels]; backward: the sum over the rows of a task

  i64 tasks() const { return ceil_div(rows, rows_per_task); }
};

struct RmsNormKernels {
  void (*forward)(const RmsNormArgs&, i64 begin, i64 end);
  void (*backward)(const RmsNormArgs&, i64 begin, i64 end);
};

const RmsNormKernels& portable_rms_norm();
const RmsNormKernels& avx2_rms_norm();
const RmsNormKernels& avx512_rms_norm();

}  // namespace vmamba
