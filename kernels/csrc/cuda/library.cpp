#include "library.h"

#include <atomic>
#include <cstdlib>
#include <string>

namespace vmamba::cuda {
namespace {

// setup.py says what the library was built for, as in "8.0 9.0a 10.0f 12.0+PTX".
constexpr const char* kArchitectures = VMAMBA_CUDA_ARCHITECTURES;

// Machine code runs on its own and later minor versions of its major version, PTX on every later GPU; a letter binds
// either to one architecture ("9.0a") or to one major version ("10.0f").
bool runs_on(int major, int minor) {
  for (const char* word = kArchitectures; *word != 0;) {
    char* rest = nullptr;
    const long its_major = std::strtol(word, &rest, 10);
    const long its_minor = std::strtol(rest + (*rest == '.'), &rest, 10);
    const char letter = *rest == 'a' || *rest == 'f' ? *rest++ : ' ';
    const bool same = major == its_major && (letter == 'a' ? minor == its_minor : minor >= its_minor);
    if (same || (major > its_major && letter == ' ' && *rest == '+')) return true;
    while (*rest != 0 && *rest != ' ') ++rest;
    word = rest + (*rest == ' ');
  }
  return false;
}

bool asked_by_environment() {
  const char* value = std::getenv("VMAMBA_CUDA_ATOMICS");
  return value != nullptr && std::string(value) == "1";
}

std::atomic<bool>& atomics() {
  static std::atomic<bool> wanted{asked_by_environment()};
  return wanted;
}

}  // namespace

const char* misfit(int major, int minor) {
  if (runs_on(major, minor)) return nullptr;
  thread_local std::string why;
  const std::string gpu = std::to_string(major) + "." + std::to_string(minor);
  why = "libvmamba_cuda.so carries code for " + std::string(kArchitectures) + ", and this GPU has capability " + gpu +
        "; build it with `TORCH_CUDA_ARCH_LIST=" + gpu +
        " VMAMBA_BUILD=cuda pip install --no-build-isolation -e .` from the checkout";
  return why.c_str();
}

bool atomics_wanted() { return atomics().load(std::memory_order_relaxed); }

}  // namespace vmamba::cuda

extern "C" {

__attribute__((visibility("default"))) const char* vmamba_cuda_misfit(int major, int minor) {
  return vmamba::cuda::misfit(major, minor);
}

// Make sums across thread blocks by atomics from now on, or no longer; returns what held before.
__attribute__((visibility("default"))) int vmamba_cuda_use_atomics(int wanted) {
  return vmamba::cuda::atomics().exchange(wanted != 0);
}
}
