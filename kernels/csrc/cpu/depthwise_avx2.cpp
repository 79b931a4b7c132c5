#include <cstdint>
#include <type_traits>

#include "depthwise_args.h"
#include "vec_avx2.h"

#include "part_vectors.h"
#include "depthwise.h"

const vmamba::DepthwiseKernels& vmamba::avx2_depthwise() {
  static const DepthwiseKernels kernels{depthwise_forward, depthwise_backward};
  return kernels;
}
