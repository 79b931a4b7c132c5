// A forward and a backward kernel, which `make test` compiles for every architecture.
#include "ss2d_backward.h"
#include "ss2d_forward.h"

namespace vmamba::cuda {

template __global__ void ss2d_forward<BFloat16, 1, 1>(const __grid_constant__ Ss2dForward);
template __global__ void ss2d_backward<BFloat16, 1, 1>(const __grid_constant__ Ss2dBackward);

}  // namespace vmamba::cuda
