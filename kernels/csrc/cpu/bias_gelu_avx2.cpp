#include <cstdint>

#include "bias_gelu_args.h"
#include "vec_avx2.h"

#include "part_vectors.h"
#include "bias_gelu.h"

const vmamba::BiasGeluKernels& vmamba::avx2_bias_gelu() {
  static const BiasGeluKernels kernels{bias_gelu_forward, bias_gelu_backward};
  return kernels;
}
