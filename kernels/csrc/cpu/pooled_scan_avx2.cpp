#include <cstdint>
#include <new>

#include "pooled_args.h"
#include "vec_avx2.h"

#include "narrow_types.h"
#include "pooled_lines.h"
#include "pooled_kernels.h"

const vmamba::PooledKernels& vmamba::avx2_pooled() {
  static const PooledKernels kernels{expand, gather};
  return kernels;
}
