// PyTorch's tensors, through its stable ABI. `op` names the operator and the device in messages, as "ss2d on cpu".
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "types.h"

namespace vmamba {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<i64>;

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

inline bool is_channel_last(const Tensor& t) { return t.stride(1) == 1 && t.stride(2) != 1; }

// Dense [B, channels, length], channel-last or not.
inline Tensor allocate_sequence(const Tensor& like, i64 channels, i64 length, bool channel_last, ScalarType type) {
  const i64 batch = like.size(0);
  if (channel_last) return allocate(like, {batch, channels, length}, {length * channels, 1, channels}, type);
  return allocate(like, {batch, channels, length}, type);
}

// Dense [B, C, L], channel-last if `like` is.
inline Tensor allocate_sequence(const Tensor& like, ScalarType type) {
  return allocate_sequence(like, like.size(1), like.size(2), is_channel_last(like), type);
}

// Dense [B, K, N, L], time-last if `like` is.
inline Tensor allocate_projection(const Tensor& like) {
  const i64 batch = like.size(0), groups = like.size(1), states = like.size(2), length = like.size(3);
  if (like.stride(3) == 1) return allocate(like, {batch, groups, states, length}, like.scalar_type());
  return allocate(like, {batch, groups, states, length}, {length * groups * states, states, 1, groups * states},
                  like.scalar_type());
}

inline i64 bytes_of(ScalarType type) { return type == ScalarType::Float ? 4 : 2; }

inline Type type_of(const Tensor& t, const char* op, const char* name) {
  if (t.scalar_type() == ScalarType::Float) return Type::f32;
  if (t.scalar_type() == ScalarType::BFloat16) return Type::bf16;
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Half, op, ": ", name, " must be float32, bfloat16 or float16");
  return Type::f16;
}

inline void check_shape(const Tensor& t, const Sizes& expected, const char* op, const char* name) {
  bool same = t.dim() == static_cast<i64>(expected.size());
  for (i64 i = 0; same && i < t.dim(); ++i) same = t.size(i) == expected[i];
  STD_TORCH_CHECK(same, op, ": the shape of ", name, " does not fit the others");
}

// A float32 tensor of that shape, dense: itself, or a copy.
inline Tensor dense(const Tensor& t, const Sizes& shape, const char* op, const char* name) {
  check_shape(t, shape, op, name);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, op, ": ", name, " must be float32");
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

inline std::optional<Tensor> dense(const std::optional<Tensor>& t, const Sizes& shape, const char* op,
                                   const char* name) {
  return t ? std::optional<Tensor>(dense(*t, shape, op, name)) : std::nullopt;
}

inline float* floats(const Tensor& t) { return static_cast<float*>(t.data_ptr()); }
inline float* floats(const std::optional<Tensor>& t) { return t ? floats(*t) : nullptr; }

// The numbers of a float32 tensor of that shape, which must be dense.
inline float* dense_floats(const Tensor& t, const Sizes& shape, const char* op, const char* name) {
  check_shape(t, shape, op, name);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.is_contiguous(), op, ": ", name,
                  " must be float32 and contiguous");
  return floats(t);
}

inline float* dense_floats(const std::optional<Tensor>& t, const Sizes& shape, const char* op, const char* name) {
  return t ? dense_floats(*t, shape, op, name) : nullptr;
}

}  // namespace vmamba
