#include "instruction_set.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace vmamba {
namespace {

#ifdef VMAMBA_X86
bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif

const ScanKernels* by_name(const char* name) {
#ifdef VMAMBA_X86
  if (std::strcmp(name, "avx512") == 0) return has_avx512() ? &avx512_kernels() : nullptr;
  if (std::strcmp(name, "avx2") == 0) return has_avx2() ? &avx2_kernels() : nullptr;
#endif
  return std::strcmp(name, "portable") == 0 ? &portable_kernels() : nullptr;
}

const ScanKernels* best() {
  if (const char* name = std::getenv("VMAMBA_CPU_ISA"))
    if (const ScanKernels* named = by_name(name)) return named;
  for (const char* name : {"avx512", "avx2"})
    if (const ScanKernels* found = by_name(name)) return found;
  return &portable_kernels();
}

std::atomic<const ScanKernels*>& current() {
  static std::atomic<const ScanKernels*> kernels{best()};
  return kernels;
}

}  // namespace

const ScanKernels& kernels() { return *current().load(std::memory_order_relaxed); }

}  // namespace vmamba

extern "C" {

// The name of the instruction set in use.
__attribute__((visibility("default"))) const char* vmamba_cpu_isa() { return vmamba::kernels().name; }

// Use the named instruction set from now on; 0 if it is unknown here or the processor lacks it.
__attribute__((visibility("default"))) int vmamba_use_cpu_isa(const char* name) {
  const vmamba::ScanKernels* found = vmamba::by_name(name);
  if (found != nullptr) vmamba::current().store(found);
  return found != nullptr;
}
}
