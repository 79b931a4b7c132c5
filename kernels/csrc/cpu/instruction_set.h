// Which of the compiled instruction sets this process uses.
#pragma once

#include <cstring>

#include "../common/selective_scan_args.h"

namespace vmamba {

// The best that the processor has, or the one named by VMAMBA_CPU_ISA, or the last one chosen by name.
const ScanKernels& kernels();

// The kernels NAME of the instruction set in use, of which there are portable_NAME, avx2_NAME and avx512_NAME.
#ifdef VMAMBA_X86
#define VMAMBA_KERNELS(NAME) in_use(portable_##NAME, avx2_##NAME, avx512_##NAME)
#else
#define VMAMBA_KERNELS(NAME) portable_##NAME()
#endif

template <class Kernels>
const Kernels& in_use(const Kernels& (&portable)(), const Kernels& (&avx2)(), const Kernels& (&avx512)()) {
  const char* name = kernels().name;
  if (std::strcmp(name, "avx512") == 0) return avx512();
  return std::strcmp(name, "avx2") == 0 ? avx2() : portable();
}

}  // namespace vmamba
