#include <cstdint>
#include <initializer_list>
#include <new>
#include <type_traits>

#include "../common/selective_scan_args.h"
#include "vec_avx2.h"

#include "narrow_types.h"
#include "softplus.h"
#include "tiles.h"
#include "scan_forward.h"
#include "scan_backward.h"

const vmamba::ScanKernels& vmamba::avx2_kernels() {
  static const ScanKernels kernels{"avx2", forward, backward};
  return kernels;
}
