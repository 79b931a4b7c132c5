// The operators on CUDA between PyTorch and their kernels: the current stream, and errors.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <exception>

#include "../common/tensors.h"
#include "launch.h"
#include "library.h"

namespace vmamba::cuda {

constexpr i64 kMostBlocks = 2147483647;

// Where kernels write floats, nullptr if there are none to write.
inline float* room(const Tensor& t) { return t.numel() > 0 ? floats(t) : nullptr; }

inline int attribute_of(const Tensor& t, cudaDeviceAttr attribute, const char* op) {
  int value = 0;
  const cudaError_t status = cudaDeviceGetAttribute(&value, attribute, t.get_device_index());
  STD_TORCH_CHECK(status == cudaSuccess, op, ": ", cudaGetErrorString(status));
  return value;
}

// Where to launch; an error if this library has no code for the tensor's GPU.
inline Queue queue_of(const Tensor& t, const char* op) {
  const char* why = misfit(attribute_of(t, cudaDevAttrComputeCapabilityMajor, op),
                           attribute_of(t, cudaDevAttrComputeCapabilityMinor, op));
  STD_TORCH_CHECK(why == nullptr, op, ": ", why);
  Queue queue;
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  queue.stream = static_cast<cudaStream_t>(stream);
  queue.processors = attribute_of(t, cudaDevAttrMultiProcessorCount, op);
  return queue;
}

// Errors of CUDA as PyTorch's.
template <typename Run>
void guarded(const Run& run) {
  try {
    run();
  } catch (const std::exception& error) {
    STD_TORCH_CHECK(false, error.what());
  }
}

}  // namespace vmamba::cuda
