// PyTorch's tensors, through its stable ABI, for the operators on CUDA. `op` names the operator in messages.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <exception>
#include <optional>
#include <tuple>
#include <vector>

#include "launch.h"
#include "scan_args.h"

namespace vmamba::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<i64>;

constexpr i64 kMostBlocks = 2147483647;

inline Tensor allocate(const Tensor& like, const Sizes& sizes, const Sizes& strides, ScalarType type) {
  std::int32_t device = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  const auto dtype = torch::stable::detail::to<std::int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<i64>(sizes.size()), sizes.data(), strides.data(), dtype,
                                                  device, like.get_device_index(), &handle));
  return Tensor(handle);
}

inline Tensor allocate(const Tensor& like, const Sizes& sizes, ScalarType type = ScalarType::Float) {
  Sizes strides(sizes.size(), 1);
  for (std::size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * (sizes[i] > 1 ? sizes[i] : 1);
  return allocate(like, sizes, strides, type);
}

inline int bytes_of(ScalarType type) { return type == ScalarType::Float ? 4 : 2; }

inline Type type_of(const Tensor& t, const char* op, const char* name) {
  if (t.scalar_type() == ScalarType::Float) return Type::f32;
  if (t.scalar_type() == ScalarType::BFloat16) return Type::bf16;
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Half, op, " on cuda: ", name, " must be float32, bfloat16 or float16");
  return Type::f16;
}

inline void check_shape(const Tensor& t, const Sizes& expected, const char* op, const char* name) {
  bool same = t.dim() == static_cast<i64>(expected.size());
  for (i64 i = 0; same && i < t.dim(); ++i) same = t.size(i) == expected[i];
  STD_TORCH_CHECK(same, op, " on cuda: the shape of ", name, " does not fit the others");
}

inline Tensor dense(const Tensor& t, const char* op, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, op, " on cuda: ", name, " must be float32");
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

inline const float* floats(const Tensor& t) { return static_cast<const float*>(t.data_ptr()); }
inline const float* floats(const std::optional<Tensor>& t) { return t ? floats(*t) : nullptr; }
inline float* room(const Tensor& t) { return t.numel() > 0 ? static_cast<float*>(t.data_ptr()) : nullptr; }

inline Queue queue_of(const Tensor& t, const char* op) {
  Queue queue;
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  queue.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t status =
      cudaDeviceGetAttribute(&queue.processors, cudaDevAttrMultiProcessorCount, t.get_device_index());
  STD_TORCH_CHECK(status == cudaSuccess, op, " on cuda: ", cudaGetErrorString(status));
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
