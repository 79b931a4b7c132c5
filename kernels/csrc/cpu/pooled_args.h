// What the kernels of the pooled scan are told. Plain data, no PyTorch.
//
// B batch, K groups of D channels, L tokens as [outer, pool1, inner, pool2], P = outer * inner pooled steps. K' and D'
// are K and D where the groups are averaged; otherwise every group is worked on alone, as K * B images of one group.
#pragma once

#include "../common/selective_scan_args.h"

namespace vmamba {

// [batch, group, channel, token] anywhere in memory; strides in elements.
struct Image {
  void* data = nullptr;
  Type type = Type::f32;
  i64 batch_stride = 0;
  i64 group_stride = 0;
  i64 channel_stride = 0;
  i64 token_stride = 0;
};

// [batch, group, channel, step] in float32.
struct Steps {
  float* data = nullptr;
  i64 batch_stride = 0;
  i64 group_stride = 0;
  i64 channel_stride = 0;
  i64 step_stride = 0;

  float* at(i64 b, i64 g, i64 c, i64 p) const {
    return data + b * batch_stride + g * group_stride + c * channel_stride + p * step_stride;
  }
};

struct PooledSizes {
  i64 batch = 0;
  i64 groups = 0;
  i64 channels = 0;  // of a group
  i64 outer = 1, pool1 = 1, inner = 1, pool2 = 1;
  bool average = false;
  bool channel_last = false;
  i64 parts = 1;  // backward, channel-last: into how many tasks the steps of an image are cut

  i64 steps() const { return outer * inner; }
  i64 tokens() const { return steps() * pool1 * pool2; }
  // Images worked on alone, and the groups that are added within one.
  i64 images() const { return average ? batch : batch * groups; }
  i64 added() const { return average ? groups : 1; }
  i64 token(i64 step, i64 i1, i64 i2) const {
    return ((step / inner * pool1 + i1) * inner + step % inner) * pool2 + i2;
  }
  i64 step(i64 token) const { return token / (pool1 * inner * pool2) * inner + token / pool2 % inner; }
};

struct ExpandArgs {
  PooledSizes sizes;
  Image u;
  Steps z;                   // the pooled scan
  const float* D = nullptr;  // [K, D] or absent
  Image y;                   // group_stride unused where the groups are averaged
};

struct GatherArgs {
  PooledSizes sizes;
  Image dy;
  Image u;
  const float* D = nullptr;  // [K, D] or absent: then neither u nor du is touched
  Image du;
  Steps dz;                  // one group where the groups are averaged
  float* dD = nullptr;       // [B, parts, K, D]; channel-first [B, K, D]
};

constexpr i64 kTokensOfTask = 64;

// Tasks of the forward (pieces of an image's tokens, or channels) and of the backward (of its steps, or channels).
inline i64 expand_tasks(const PooledSizes& s) {
  return s.images() * (s.channel_last ? (s.tokens() + kTokensOfTask - 1) / kTokensOfTask : s.channels);
}
inline i64 gather_tasks(const PooledSizes& s) { return s.images() * (s.channel_last ? s.parts : s.channels); }

// The kernels of one instruction set; each call does the tasks [begin, end).
struct PooledKernels {
  void (*expand)(const ExpandArgs&, i64 begin, i64 end);
  void (*gather)(const GatherArgs&, i64 begin, i64 end);
};

const PooledKernels& portable_pooled();
const PooledKernels& avx2_pooled();
const PooledKernels& avx512_pooled();

}  // namespace vmamba
