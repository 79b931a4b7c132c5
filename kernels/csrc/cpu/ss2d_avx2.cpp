#include <cstdint>
#include <initializer_list>
#include <new>
#include <type_traits>

#include "ss2d_args.h"
#include "vec_avx2.h"

#include "narrow_types.h"
#include "softplus.h"
#include "tiles.h"
#include "scan_forward.h"
#include "scan_backward.h"
#include "ss2d_block.h"
#include "ss2d_forward.h"
#include "ss2d_products.h"
#include "ss2d_backward.h"

const vmamba::Ss2dKernels& vmamba::avx2_ss2d() {
  static const Ss2dKernels kernels{ss2d_forward, ss2d_backward};
  return kernels;
}
