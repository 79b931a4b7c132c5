// The kernels of ss2d for float32 inputs.
#include "ss2d_run.h"

namespace vmamba::cuda {

template void ss2d_forward_of<float>(Ss2dForward, float*, const Queue&);
template void ss2d_backward_of<float>(Ss2dBackward, Ss2dReduction, float*, const Queue&);

}  // namespace vmamba::cuda
