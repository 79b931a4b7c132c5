#include <cstdint>
#include <new>
#include <type_traits>

#include "conv1d_args.h"
#include "vec_avx512.h"

#include "narrow_types.h"
#include "softplus.h"
#include "tiles.h"
#include "conv1d_rows.h"
#include "conv1d_forward.h"
#include "conv1d_backward.h"

const vmamba::ConvKernels& vmamba::avx512_conv1d() {
  static const ConvKernels kernels{conv1d_forward, conv1d_backward};
  return kernels;
}
