// Launching kernels: on PyTorch's stream, or in the emulation.
#pragma once

#include "words.h"

#ifndef VMAMBA_EMULATED
#include <stdexcept>
#include <string>
#endif

namespace vmamba::cuda {

using vmamba::ceil_div;

#ifndef VMAMBA_EMULATED
struct Queue {
  cudaStream_t stream = nullptr;
  int processors = 1;
};

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

inline void clear(float* data, i64 floats, const Queue& queue) {
  check(cudaMemsetAsync(data, 0, std::size_t(floats) * sizeof(float), queue.stream), "vmamba: memset");
}

template <typename Args>
void launch(void (*kernel)(Args), dim3 grid, int threads, int shared_bytes, const Args& args, const Queue& queue) {
  if (shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
          "vmamba: so large a call does not fit into the shared memory of this GPU");
  kernel<<<grid, threads, shared_bytes, queue.stream>>>(args);
  check(cudaGetLastError(), "vmamba: launch");
}
#endif

}  // namespace vmamba::cuda
