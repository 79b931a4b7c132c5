// Which of the compiled instruction sets this process uses.
#pragma once

#include "../common/selective_scan_args.h"

namespace vmamba {

// The best that the processor has, or the one named by VMAMBA_CPU_ISA, or the last one chosen by name.
const ScanKernels& kernels();

}  // namespace vmamba
