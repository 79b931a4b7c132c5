// vmamba::_bias_gelu_rows and its backward on CPU tensors: checks, allocation, and the tasks on PyTorch's threads.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <memory>
#include <tuple>

#include "bias_gelu_args.h"
#include "instruction_set.h"

namespace vmamba {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Numbers of a task: enough to outweigh its start, few enough to stay in cache. The shape alone decides, so that sums
// are the same for any number of threads.
constexpr i64 kNumbers = 1 << 15;

const BiasGeluKernels& bias_gelu_kernels() {
#ifdef VMAMBA_X86
  const char* name = kernels().name;
  if (std::strcmp(name, "avx512") == 0) return avx512_bias_gelu();
  if (std::strcmp(name, "avx2") == 0) return avx2_bias_gelu();
#endif
  return portable_bias_gelu();
}

float* dense(const Tensor& t, const Tensor& x, const char* name) {
  bool fits = t.scalar_type() == ScalarType::Float && t.is_contiguous() && t.dim() == x.dim();
  for (i64 i = 0; fits && i < t.dim(); ++i) fits = t.size(i) == x.size(i);
  STD_TORCH_CHECK(fits, "bias_gelu on cpu: ", name, " must be float32, contiguous and of the shape of x");
  return static_cast<float*>(t.data_ptr());
}

BiasGeluArgs arguments(const Tensor& x, const Tensor& bias) {
  STD_TORCH_CHECK(x.dim() > 0 && bias.dim() == 1 && bias.size(0) == x.size(x.dim() - 1),
                  "bias_gelu on cpu: expected x [..., C] and bias [C]");
  BiasGeluArgs args;
  args.channels = bias.size(0);
  args.rows = args.channels ? x.numel() / args.channels : 0;
  args.rows_per_task = 1 + kNumbers / (args.channels + 1);
  args.x = dense(x, x, "x");
  args.bias = dense(bias, bias, "bias");
  return args;
}

void forward(const Tensor& x, const Tensor& bias, const Tensor& y) {
  BiasGeluArgs args = arguments(x, bias);
  args.to = dense(y, x, "y");
  if (args.rows == 0) return;
  const BiasGeluKernels& isa = bias_gelu_kernels();
  torch::stable::parallel_for(0, args.tasks(), 1, [&](i64 begin, i64 end) { isa.forward(args, begin, end); });
}

void backward(const Tensor& dy, const Tensor& x, const Tensor& bias, const Tensor& dx, const Tensor& dbias) {
  BiasGeluArgs args = arguments(x, bias);
  args.dy = dense(dy, x, "dy");
  args.to = dense(dx, x, "dx");
  float* total = dense(dbias, bias, "dbias");
  const i64 tasks = args.rows ? args.tasks() : 0;
  const std::unique_ptr<float[]> parts(new float[tasks * args.channels]);
  args.dbias = parts.get();
  const BiasGeluKernels& isa = bias_gelu_kernels();
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
