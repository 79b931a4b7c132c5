// What a bias_gelu kernel is told: dense rows of channels in float32. Plain data, no PyTorch.
#pragma once

#include "../common/selective_scan_args.h"

namespace vmamba {

struct BiasGeluArgs {
  i64 rows = 0;
  i64 channels = 0;
  i64 rows_per_task = 0;
  const float* x = nullptr;     // [rows, channels]
  const float* bias = nullptr;  // [channels]
  const float* dy = nullptr;    // [rows, channels]; backward
  float* to = nullptr;          // [rows, channels]: y, which may be x, or dx, which may be dy
  float* y = nullptr;           // [rows, channels]; backward: y once more, or absent
  float* dbias = nullptr;       // [tasks, channels]; backward: the sum over the rows of a task

  i64 tasks() const { return (rows + rows_per_task - 1) / rows_per_task; }
};

struct BiasGeluKernels {
  void (*forward)(const BiasGeluArgs&, i64 begin, i64 end);
  void (*backward)(const BiasGeluArgs&, i64 begin, i64 end);
};

const BiasGeluKernels& portable_bias_gelu();
const BiasGeluKernels& avx2_bias_gelu();
const BiasGeluKernels& avx512_bias_gelu();

}  // namespace vmamba
