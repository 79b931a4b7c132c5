#include <cstdint>

#include "rms_norm_args.h"
#include "vec_avx2.h"

#include "part_vectors.h"
#include "rms_norm.h"

const vmamba::RmsNormKernels& vmamba::avx2_rms_norm() {
  static const RmsNormKernels kernels{rms_norm_forward, rms_norm_backward};
  return kernels;
}
