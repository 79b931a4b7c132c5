#include <cstdint>

#include "rms_norm_args.h"
#include "vec_portable.h"

#include "part_vectors.h"
#include "rms_norm.h"

const vmamba::RmsNormKernels& vmamba::portable_rms_norm() {
  static const RmsNormKernels kernels{rms_norm_forward, rms_norm_backward};
  return kernels;
}
