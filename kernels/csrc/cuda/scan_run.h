// How a selective scan is cut into thread blocks, and the kernels that make up its forward and its backward pass.
#pragma once

#include "launch.h"
#include "reductions.h"
#include "scan_backward.h"
#include "scan_forward.h"
#include "segments.h"

namespace vmamba::cuda {

constexpr int kForwardStates = 16;  // most states that the forward keeps in registers
constexpr int kBackwardStates = 2;  // states that the backward takes at once, unless there is only one
constexpr int kBusyThreads = 384;   // of a multiprocessor, from which on time need not be cut

// Chooses the threads of a block so that few lanes idle, and cuts time when batch and channels leave the GPU idle.
inline void plan(Scan& p, int processors, int wanted_segments = 0) {
  i64 fewest = 0;
  for (int threads = kMostThreads; threads >= kLanes; threads -= kLanes) {
    const i64 lanes = ceil_div(p.group_channels, threads) * threads;
    if (fewest == 0 || lanes < fewest) fewest = lanes, p.threads = threads;
  }
  p.blocks = int(ceil_div(p.group_channels, p.threads));
  p.atomics = p.atomics && p.blocks > 1;
  const i64 busy = p.batch * p.groups * fewest;
  const i64 chunks = ceil_div(p.length, kChunk);
  i64 segments = wanted_segments > 0 ? wanted_segments : i64(processors) * kBusyThreads / (busy > 0 ? busy : 1);
  if (wanted_segments == 0 && segments > chunks / 2) segments = chunks / 2;
  if (segments > 64) segments = 64;
  if (segments < 1) segments = 1;
  p.segment = ceil_div(chunks, segments) * kChunk;
  p.segments = int(ceil_div(p.length, p.segment));
}

// The largest piece in bytes that divides every address where a row of a window starts.
inline int piece_of(const Scan& p, const Sequence& s, i64 channels, int element, bool shared_delta) {
  i64 bits = 16 | i64(reinterpret_cast<std::uintptr_t>(s.data));
  if (p.batch > 1) bits |= s.batch;
  if (s.channel_last) {
    if (p.length > 1) bits |= s.time;
    bits |= shared_delta ? element : p.groups > 1 ? i64(p.group_channels) * element : 0;
  } else if (channels > 1) {
    bits |= s.channel;
  }
  return int(bits & -bits);
}

// Floats of scratch memory.
inline i64 forward_floats(const Scan& p) {
  const i64 each = p.batch * p.segments * p.channels();
  if (p.segments > 1) return each * (2 * p.states + 1);
  return p.states > kForwardStates ? each * p.states : 0;
}
inline i64 projection_floats(const Scan& p) { return 2 * p.batch * p.groups * p.parts() * p.states * p.length; }
inline i64 backward_floats(const Scan& p) {
  const i64 each = p.batch * p.segments * p.channels();
  const i64 apart = p.delta_ratio > 1 ? p.batch * p.length * p.channels() : 0;
  return each * (2 * p.states + 2 + (p.segments > 1 ? p.states + 1 : 0)) + apart + projection_floats(p);
}

inline void join(const Joining& j, const Queue& queue) {
  const Scan& p = j.scan;
  launch(join_segments, dim3(unsigned(p.batch * join_blocks(p))), kMostThreads, 0, j, queue);
}

template <typename T, int kStates>
void forward_typed(Forward f, float* scratch, const Queue& queue) {
  const Scan& p = f.scan;
  const i64 each = p.batch * p.segments * p.channels();
  const int bytes = ForwardMemory<T, kStates>::bytes(p.threads, p.states);
  f.running = scratch;
  if (p.segments > 1) {
    f.ends = f.running + each * p.states;
    f.times = f.ends + each * p.states;
    Forward ends = f;
    ends.ends_only = true;
    ends.out.data = nullptr;
    ends.stored_states = nullptr;
    launch(scan_forward<T, kStates>, dim3(unsigned(p.units()), unsigned(p.segments - 1)), p.threads, bytes, ends, queue);
    join(Joining{p, false, f.ends, f.times, nullptr, f.running}, queue);
  }
  launch(scan_forward<T, kStates>, dim3(unsigned(p.units()), unsigned(p.segments)), p.threads, bytes, f, queue);
}

template <typename T, int kStates>
void backward_typed(Backward b, Reduction r, float* scratch, const Queue& queue) {
  const Scan& p = b.scan;
  const i64 each = p.batch * p.segments * p.channels();
  const auto take = [&](i64 floats) { return scratch += floats, scratch - floats; };
  const dim3 grid(unsigned(p.units()), unsigned(p.segments));
  b.running = take(each * p.states);
  b.partial_sums = take(each * (p.states + 2));
  b.partial_BC = take(projection_floats(p));
  if (p.atomics) clear(b.partial_BC, projection_floats(p), queue);
  if (p.segments > 1) {
    b.ends = take(each * p.states);
    b.times = take(each);
    launch(gradient_ends<T>, grid, p.threads, 0, b, queue);
  }
  join(Joining{p, true, b.ends, b.times, b.dlast_state, b.running}, queue);
  if (p.delta_ratio > 1) {
    float* apart = take(p.batch * p.length * p.channels());
    const i64 row = p.channels() * i64(sizeof(float));
    b.ddelta_apart = true;
    b.ddelta = Sequence{reinterpret_cast<char*>(apart), row * p.length, i64(sizeof(float)), row, 4, true};
    r.ddelta_apart = apart;
  }
  launch(scan_backward<T, kStates>, grid, p.threads, BackwardMemory<T, kStates>::bytes(p.threads, p.states), b, queue);

  r.scan = p;
  r.partial_BC = b.partial_BC;
  r.partial_sums = b.partial_sums;
  const int threads = p.length < kReductionThreads ? int(ceil_div(p.length, kLanes)) * kLanes : kReductionThreads;
  launch(reduce_projections<T>,
         dim3(unsigned(2 * p.batch * p.groups * p.states), unsigned(ceil_div(p.length, threads))), threads, 0, r, queue);
  launch(reduce_weights, dim3(unsigned(ceil_div(p.channels() * (p.states + 2), kLanes))), kReductionThreads,
         kReductionThreads * int(sizeof(float)), r, queue);
  if (p.delta_ratio > 1) {
    const i64 blocks = ceil_div(p.batch * p.length * p.channels() / p.delta_ratio, kReductionThreads);
    launch(reduce_delta<T>, dim3(unsigned(blocks < 65536 ? blocks : 65536)), kReductionThreads, 0, r, queue);
  }
}

template <typename T>
void forward_of(const Forward& f, float* scratch, const Queue& queue) {
  if (f.scan.states == 1)
    forward_typed<T, 1>(f, scratch, queue);
  else if (f.scan.states <= kForwardStates)
    forward_typed<T, kForwardStates>(f, scratch, queue);
  else
    forward_typed<T, 4>(f, scratch, queue);
}

template <typename T>
void backward_of(const Backward& b, const Reduction& r, float* scratch, const Queue& queue) {
  if (b.scan.states == 1)
    backward_typed<T, 1>(b, r, scratch, queue);
  else
    backward_typed<T, kBackwardStates>(b, r, scratch, queue);
}

inline void forward(Type type, const Forward& f, float* scratch, const Queue& queue) {
  if (type == Type::f32) return forward_of<float>(f, scratch, queue);
  if (type == Type::bf16) return forward_of<BFloat16>(f, scratch, queue);
  forward_of<Float16>(f, scratch, queue);
}

// `b.stored_states` must lie kChunk steps apart; of `r` only where the results go is used.
inline void backward(Type type, const Backward& b, const Reduction& r, float* scratch, const Queue& queue) {
  if (type == Type::f32) return backward_of<float>(b, r, scratch, queue);
  if (type == Type::bf16) return backward_of<BFloat16>(b, r, scratch, queue);
  backward_of<Float16>(b, r, scratch, queue);
}

}  // namespace vmamba::cuda
