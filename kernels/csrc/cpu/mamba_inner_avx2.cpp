#include <cstdint>
#include <initializer_list>
#include <new>
#include <type_traits>

#include "mamba_inner_args.h"
#include "ss2d_args.h"
#include "vec_avx2.h"

#include "narrow_types.h"
#include "softplus.h"
#include "tiles.h"
#include "scan_forward.h"
#include "scan_backward.h"
#include "ss2d_block.h"
#include "ss2d_products.h"
#include "mamba_inner_direction.h"
#include "mamba_inner_forward.h"
#include "mamba_inner_walk.h"
#include "mamba_inner_backward.h"

const vmamba::InnerKernels& vmamba::avx2_mamba_inner() {
  static const InnerKernels kernels{inner_forward, inner_gate_backward, inner_backward};
  return kernels;
}
