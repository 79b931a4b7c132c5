// Tensors as the CPU kernels are told of them.
#pragma once

#include "../common/selective_scan_args.h"
#include "../common/tensors.h"

namespace vmamba {

inline Sequence sequence(const Tensor& t, const char* op, const char* name) {
  return {t.data_ptr(), type_of(t, op, name), t.stride(0), t.stride(1), t.stride(2)};
}

}  // namespace vmamba
