// How the pooled scan is cut into thread blocks: the scans of its groups, each from its own end, and the two passes over
// the tokens.
#pragma once

#include "pooled_backward.h"
#include "scan_entry.h"

namespace vmamba::cuda {

// The pooled side of a call: [B, K*D, P] with the channels side by side, B and C anywhere.
struct PooledInputs {
  Scan scan;  // of all groups, without plan: sizes, A, delta_bias, and u, delta, B, C as they lie
  Type type = Type::f32;
  unsigned reverse = 0;  // a bit a group
};

inline int element_of(Type type) { return type == Type::f32 ? 4 : 2; }

// Group g of a sequence of `channels` a group, walked from its end if the group is reversed.
inline Sequence walk(const PooledInputs& in, Sequence s, int g, i64 channels) {
  s.data += g * channels * s.channel;
  if (in.reverse >> g & 1) {
    s.data += (in.scan.length - 1) * s.time;
    s.time = -s.time;
  }
  return s;
}

inline Projection walk(const PooledInputs& in, Projection s, int g) {
  s.data += g * s.group;
  if (in.reverse >> g & 1) {
    s.data += (in.scan.length - 1) * s.time;
    s.time = -s.time;
  }
  return s;
}

// The scan of one group.
inline Scan group_scan(const PooledInputs& in, int g, const Queue& queue) {
  Scan s = in.scan;
  const i64 D = s.group_channels, delta_channels = D / s.delta_ratio;
  s.groups = 1;
  plan_scan(s, queue.processors);
  s.u = walk(in, s.u, g, D);
  s.delta = walk(in, s.delta, g, delta_channels);
  s.u.piece = piece_of_scan(s, s.u, D, element_of(in.type), false);
  s.delta.piece = piece_of_scan(s, s.delta, delta_channels, element_of(in.type), s.delta_ratio > 1);
  s.B = walk(in, s.B, g);
  s.C = walk(in, s.C, g);
  s.A += g * D * s.states;
  if (s.delta_bias) s.delta_bias += g * delta_channels;
  return s;
}

// A float32 [B, P, width] of scratch memory.
inline Sequence steps_of(float* data, i64 steps, i64 width) {
  const i64 row = width * i64(sizeof(float));
  return Sequence{reinterpret_cast<char*>(data), steps * row, i64(sizeof(float)), row, 0, true};
}

inline i64 kept_states(const Scan& s) { return ceil_div(s.length, kChunk) - 1; }

inline i64 pooled_forward_floats(const PooledInputs& in, const Queue& queue) {
  return scan_forward_floats(group_scan(in, 0, queue));
}
inline i64 pooled_backward_floats(const PooledInputs& in, const Queue& queue) {
  return scan_backward_floats(group_scan(in, 0, queue));
}

// z [B, P, KD]; states [K, B, kept, N, D] or absent.
inline void scan_groups(const PooledInputs& in, float* z, float* states, float* scratch, const Queue& queue) {
  const i64 D = in.scan.group_channels;
  for (int g = 0; g < in.scan.groups; ++g) {
    Forward f;
    f.scan = group_scan(in, g, queue);
    f.out = walk(in, steps_of(z, in.scan.length, in.scan.channels()), g, D);
    f.out.piece = piece_of_scan(f.scan, f.out, D, 4, false);
    if (states) {
      f.stored = kept_states(in.scan);
      f.stored_states = f.stored > 0 ? states + g * in.scan.batch * f.stored * in.scan.states * D : nullptr;
    }
    run_scan_forward(in.type, f, scratch, queue);
  }
}

// Where the gradients of the pooled side go: as the inputs lie, u and delta with the channels side by side.
struct PooledGradients {
  const float* dz = nullptr;  // [B, P, KD], or [B, P, D] for all groups
  bool dz_shared = false;
  const float* states = nullptr;
  Sequence du;
  Sequence ddelta;
  Projection dB;
  Projection dC;
  float* dA = nullptr;
  float* ddelta_bias = nullptr;  // or absent
};

inline void scan_groups_backward(const PooledInputs& in, const PooledGradients& to, float* scratch, const Queue& queue) {
  const i64 D = in.scan.group_channels, delta_channels = D / in.scan.delta_ratio;
  const int element = element_of(in.type);
  for (int g = 0; g < in.scan.groups; ++g) {
    Backward b;
    b.scan = group_scan(in, g, queue);
    Sequence dz = steps_of(const_cast<float*>(to.dz), in.scan.length, to.dz_shared ? D : in.scan.channels());
    b.dout = walk(in, dz, g, to.dz_shared ? 0 : D);
    b.dout.piece = piece_of_scan(b.scan, b.dout, D, 4, false);
    b.stored = kept_states(in.scan);
    b.stored_states = to.states + g * in.scan.batch * b.stored * in.scan.states * D;
    b.du = walk(in, to.du, g, D);
    b.du.piece = piece_of_scan(b.scan, b.du, D, element, false);
    b.ddelta = walk(in, to.ddelta, g, delta_channels);
    b.ddelta.piece = piece_of_scan(b.scan, b.ddelta, delta_channels, element, b.scan.delta_ratio > 1);
    Reduction r;
    r.ddelta = b.ddelta;
    r.dB = walk(in, to.dB, g);
    r.dC = walk(in, to.dC, g);
    r.dA = to.dA + g * D * in.scan.states;
    r.ddelta_bias = to.ddelta_bias ? to.ddelta_bias + g * delta_channels : nullptr;
    run_scan_backward(in.type, b, r, scratch, queue);
  }
}

constexpr i64 kThreadsOfProcessor = 1024;  // that keep its memory busy

inline dim3 blocks_of(i64 threads) { return dim3(unsigned(ceil_div(threads, kPooledThreads))); }

template <typename T, typename O>
void expand_typed(Expand e, const Queue& queue) {
  Pooled& p = e.pooled;
  if (!p.channel_last) {
    const dim3 grid = blocks_of(p.images() * p.channels * ceil_div(p.tokens, kVector<T>));
    const auto kernel = p.added == 2 ? expand_columns<T, O, 2> : expand_columns<T, O, 1>;
    return launch(kernel, grid, kPooledThreads, 0, e, queue);
  }
  const i64 threads = p.images() * p.steps * ceil_div(p.channels, kVector<T>);
  const i64 wanted = ceil_div(queue.processors * kThreadsOfProcessor, threads > 0 ? threads : 1);
  p.splits = int(wanted < p.pool() ? wanted : p.pool());
  const auto kernel = p.added == 2 ? expand_rows<T, O, 2> : expand_rows<T, O, 1>;
  launch(kernel, blocks_of(threads * p.splits), kPooledThreads, 0, e, queue);
}

// Rows that dD comes in, [rows, KD].
template <typename T>
i64 plan_gather(Pooled& p, const Queue& queue) {
  const i64 threads = p.images() * ceil_div(p.channels, kVector<T>);
  const i64 wanted = ceil_div(queue.processors * kThreadsOfProcessor, threads > 0 ? threads : 1);
  p.splits = int(!p.channel_last ? 1 : wanted < p.steps ? wanted : p.steps);
  return p.batch * p.splits;
}
inline i64 skip_rows(Type type, Pooled p, const Queue& queue) {
  return type == Type::f32 ? plan_gather<float>(p, queue) : plan_gather<BFloat16>(p, queue);
}

template <typename T, typename G>
void gather_typed(Gather g, float* dD, const Queue& queue) {
  Pooled& p = g.pooled;
  const i64 rows = plan_gather<T>(p, queue);
  if (p.channel_last) {
    const auto kernel = p.added == 2 ? gather_rows<T, G, 2> : gather_rows<T, G, 1>;
    const i64 threads = p.images() * p.splits * ceil_div(p.channels, kVector<T>);
    launch(kernel, blocks_of(threads), kPooledThreads, 0, g, queue);
  } else {
    const auto kernel = p.added == 2 ? gather_columns<T, G, 2> : gather_columns<T, G, 1>;
    launch(kernel, blocks_of(p.images() * p.channels * kLanes), kPooledThreads, 0, g, queue);
  }
  if (!g.D) return;
  const dim3 grid(unsigned(ceil_div(p.all_channels(), kLanes)));
  launch(add_rows, grid, kRowThreads, kRowThreads * int(sizeof(float)), Rows{g.dD, rows, p.all_channels(), dD}, queue);
}

inline void expand(Type type, bool out_f32, const Expand& e, const Queue& queue) {
  if (type == Type::f32) return expand_typed<float, float>(e, queue);
  if (type == Type::bf16)
    return out_f32 ? expand_typed<BFloat16, float>(e, queue) : expand_typed<BFloat16, BFloat16>(e, queue);
  out_f32 ? expand_typed<Float16, float>(e, queue) : expand_typed<Float16, Float16>(e, queue);
}

inline void gather(Type type, bool dy_f32, const Gather& g, float* dD, const Queue& queue) {
  if (type == Type::f32) return gather_typed<float, float>(g, dD, queue);
  if (type == Type::bf16)
    return dy_f32 ? gather_typed<BFloat16, float>(g, dD, queue) : gather_typed<BFloat16, BFloat16>(g, dD, queue);
  dy_f32 ? gather_typed<Float16, float>(g, dD, queue) : gather_typed<Float16, Float16>(g, dD, queue);
}

}  // namespace vmamba::cuda
