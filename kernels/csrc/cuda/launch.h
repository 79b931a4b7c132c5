// Launching kernels: on PyTorch's stream, or in the emulation.
#pragma once

#include "words.h"

#ifndef VMAMBA_EMULATED
#include <stdexcept>
#include <string>
#endif

namespace vmamba::cuda {

inline i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }

#ifndef VMAMBA_EMULATED
struct Queue {
  cudaStream_t stream = nullptr;
  int processors = 1;
};

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

template <typename Args>
void launch(void (*kernel)(Args), dim3 grid, int threads, int shared_bytes, const Args& args, const Queue& queue) {
  if (shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
          "vmamba: so many states do not fit into the shared memory of this GPU");
  kernel<<<grid, threads, shared_bytes, queue.stream>>>(args);
  check(cudaGetLastError(), "vmamba: launch");
}
#endif

}  // namespace vmamba::cuda
