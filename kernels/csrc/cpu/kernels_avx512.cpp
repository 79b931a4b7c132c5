#include <cstdint>
#include <initializer_list>
#include <new>
#include <type_traits>

#include "../common/selective_scan_args.h"
#include "vec_avx512.h"

#include "narrow_types.h"
#include "softplus.h"
#include "tiles.h"
#include "scan_forward.h"
#include "scan_backward.h"

const vmamba::ScanKernels& vmamba::avx512_kernels() {
  static const ScanKernels kernels{"avx512", forward, backward};
  return kernels;
}
