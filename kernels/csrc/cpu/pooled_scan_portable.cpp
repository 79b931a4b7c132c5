#include <cstdint>
#include <new>

#include "pooled_args.h"
#include "vec_portable.h"

#include "narrow_types.h"
#include "pooled_lines.h"
#include "pooled_kernels.h"

const vmamba::PooledKernels& vmamba::portable_pooled() {
  static const PooledKernels kernels{expand, gather};
  return kernels;
}
