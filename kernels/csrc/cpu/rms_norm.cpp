// vmamba::_rms_norm_rows and its backward on CPU tensors: checks, allocation, and the tasks on PyTorch's threads.

#include <algorithm>

#include "instruction_set.h"
#include "rms_norm_args.h"
#include "tasks.h"
#include "tensors.h"

namespace vmamba {
namespace {

// Numbers and rows of a task: enough to outweigh its start, and that its part of dweight is small beside its rows; few
// enough that there are many of them, and that the sum of a task stays exact. The shape alone decides, so that sums are
// the same for any number of threads.
constexpr i64 kNumbers = 1 << 13;
constexpr i64 kLeastRows = 32;
constexpr i64 kMostRows = 256;

constexpr const char* kOperator = "rms_norm on cpu";

struct Call {
  RmsNormArgs args;
  Sizes shape;

  Call(const Tensor& x, const Tensor& weight, double eps) : shape(sizes_of(x)) {
    STD_TORCH_CHECK(!shape.empty(), "rms_norm on cpu: expected x [..., D]");
    args.channels = shape.back();
    args.rows = args.channels ? x.numel() / args.channels : 0;
    args.rows_per_task = std::clamp(kNumbers / (args.channels + 1), kLeastRows, kMostRows);
    args.eps = static_cast<float>(eps);
    args.x = dense_floats(x, shape, kOperator, "x");
    args.weight = dense_floats(weight, {args.channels}, kOperator, "weight");
  }

  template <class Run>
  void parts(const Run& run) const {
    parallel(args.rows * args.channels, args.tasks(), [&](i64 begin, i64 end) { run(args, begin, end); });
  }
};

void forward(const Tensor& x, const Tensor& weight, double eps, const Tensor& y) {
  Call call(x, weight, eps);
  call.args.to = dense_floats(y, call.shape, kOperator, "y");
  call.parts(VMAMBA_KERNELS(rms_norm).forward);
}

void backward(const Tensor& dy, const Tensor& x, const Tensor& weight, double eps, const Tensor& dx,
              const Tensor& dweight) {
  Call call(x, weight, eps);
  RmsNormArgs& args = call.args;
  args.dy = dense_floats(dy, call.shape, kOperator, "dy");
  args.to = dense_floats(dx, call.shape, kOperator, "dx");
  float* total = dense_floats(dweight, {args.channels}, kOperator, "dweight");
  const Floats parts = scratch(args.tasks() * args.channels);
  args.dweight = parts.get();
  call.parts(VMAMBA_KERNELS(rms_norm).backward);
  add_parts(parts.get(), args.tasks(), args.channels, total);
}

}  // namespace
}  // namespace vmamba

STABLE_TORCH_LIBRARY_IMPL(vmamba, CPU, m) {
  m.impl("_rms_norm_rows", TORCH_BOX(&vmamba::forward));
  m.impl("_rms_norm_rows_backward", TORCH_BOX(&vmamba::backward));
}
