// Tensors as the CPU kernels are told of them.
#pragma once

#include "../common/selective_scan_args.h"
#include "../common/tensors.h"

namespace vmamba {

inline Sequence sequence(const Tensor& t, const char* op, const char* name) {
  return {t.data_ptr(), type_of(t, op, name), t.stride(0), t.stride(1), t.stride(2)};
}

inline Sizes sizes_of(const Tensor& t) {
  Sizes sizes(t.dim());
  for (i64 i = 0; i < t.dim(); ++i) sizes[i] = t.size(i);
  return sizes;
}

}  // namespace vmamba
