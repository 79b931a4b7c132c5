// vmamba::_bias_gelu_rows and its backward on CPU tensors: checks, allocation, and the tasks on PyTorch's threads.

#include "bias_gelu_args.h"
#include "instruction_set.h"
#include "tasks.h"
#include "tensors.h"

namespace vmamba {
namespace {

// Numbers of a task: enough to outweigh its start, few enough to stay in cache. The shape alone decides, so that sums
// are the same for any number of threads.
constexpr i64 kNumbers = 1 << 15;

constexpr const char* kOperator = "bias_gelu on cpu";

// The numbers of a tensor of the shape of `x`.
float* numbers(const Tensor& t, const Tensor& x, const char* name) {
  return dense_floats(t, sizes_of(x), kOperator, name);
}

BiasGeluArgs arguments(const Tensor& x, const Tensor& bias) {
  STD_TORCH_CHECK(x.dim() > 0 && bias.dim() == 1 && bias.size(0) == x.size(x.dim() - 1),
                  "bias_gelu on cpu: expected x [..., C] and bias [C]");
  BiasGeluArgs args;
  args.channels = bias.size(0);
  args.rows = args.channels ? x.numel() / args.channels : 0;
  args.rows_per_task = 1 + kNumbers / (args.channels + 1);
  args.x = numbers(x, x, "x");
  args.bias = numbers(bias, bias, "bias");
  return args;
}

void forward(const Tensor& x, const Tensor& bias, const Tensor& y) {
  BiasGeluArgs args = arguments(x, bias);
  args.to = numbers(y, x, "y");
  if (args.rows == 0) return;
  const BiasGeluKernels& isa = VMAMBA_KERNELS(bias_gelu);
  torch::stable::parallel_for(0, args.tasks(), 1, [&](i64 begin, i64 end) { isa.forward(args, begin, end); });
}

void backward(const Tensor& dy, const Tensor& x, const Tensor& bias, const Tensor& dx, const Tensor& dbias,
              const std::optional<Tensor>& y) {
  BiasGeluArgs args = arguments(x, bias);
  if (y) args.y = numbers(*y, x, "y");
  args.dy = numbers(dy, x, "dy");
  args.to = numbers(dx, x, "dx");
  float* total = numbers(dbias, bias, "dbias");
  const i64 tasks = args.rows ? args.tasks() : 0;
  const Floats parts = scratch(tasks * args.channels);
  args.dbias = parts.get();
  const BiasGeluKernels& isa = VMAMBA_KERNELS(bias_gelu);
  if (tasks) torch::stable::parallel_for(0, tasks, 1, [&](i64 begin, i64 end) { isa.backward(args, begin, end); });
  for (i64 c = 0; c < args.channels; ++c) total[c] = 0.0f;
  for (i64 task = 0; task < tasks; ++task)
    for (i64 c = 0; c < args.channels; ++c) total[c] += parts[task * args.channels + c];
}

}  // namespace
}  // namespace vmamba

STABLE_TORCH_LIBRARY_IMPL(vmamba, CPU, m) {
  m.impl("_bias_gelu_rows", TORCH_BOX(&vmamba::forward));
  m.impl("_bias_gelu_rows_backward", TORCH_BOX(&vmamba::backward));
}
