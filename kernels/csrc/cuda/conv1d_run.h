// The kernels that make up the forward and the backward of the causal convolution, and how they are launched.
#pragma once

#include "conv1d_backward.h"
#include "launch.h"

namespace vmamba::cuda::conv1d {

constexpr i64 kMostRows = 65535;
constexpr int kPieceSteps = 128;         // time steps of a backward block where channels lie side by side
constexpr int kPieceRun = kLanes * kRun;  // of a backward warp where time steps do
static_assert(kPieceSteps == kWarps * kBackwardSteps);

inline i64 pieces_of(const Conv& p) {
  return p.x.channel_last ? ceil_div(p.length, kPieceSteps) : ceil_div(p.length + kRun - 1, kPieceRun);
}

// Blocks of the largest launch: at most 2^31 - 1 can run.
inline i64 forward_blocks(const Conv& p, int element) {
  const i64 vectors = ceil_div(p.channels, forward_bytes(p.taps) / element);
  if (p.x.channel_last) return ceil_div(vectors * ceil_div(p.length, kForwardSteps), kForwardThreads);
  return ceil_div(p.batch * p.channels * ((p.length + 2 * kRun - 2) / kRun), kForwardThreads);
}
inline i64 backward_blocks(const Conv& p) {
  if (p.x.channel_last) return p.batch * pieces_of(p) * ceil_div(p.channels, columns_of(p.taps) * kLanes);
  return ceil_div(p.batch * p.channels * pieces_of(p), kRowWarps);
}

template <typename T, int kTaps>
void forward_typed(const Forward& f, const Queue& queue) {
  const Conv& p = f.conv;
  const unsigned blocks = unsigned(forward_blocks(p, int(sizeof(T))));
  if (p.x.channel_last)
    launch(conv_forward_last<T, kTaps>, dim3(blocks, unsigned(p.batch < kMostRows ? p.batch : kMostRows)),
           kForwardThreads, 0, f, queue);
  else
    launch(conv_forward_first<T, kTaps>, dim3(blocks), kForwardThreads, 0, f, queue);
}

template <typename T, int kTaps>
void backward_typed(Backward b, Reduction r, const Queue& queue) {
  const Conv& p = b.conv;
  const unsigned blocks = unsigned(backward_blocks(p));
  b.pieces = pieces_of(p);
  if (p.x.channel_last) {
    b.steps = int(ceil_div(p.length, b.pieces * kWarps));
    const int waiting = p.shared && p.groups > 1 ? kBackwardSteps * kWarps * kLanes : 0;
    const int bytes = (waiting + kWarps / 2 * (p.taps + 1) * kLanes) * int(sizeof(Slot<columns_of(kTaps)>));
    launch(conv_backward_last<T, kTaps>, dim3(blocks), kWarps * kLanes, bytes, b, queue);
  } else {
    launch(conv_backward_first<T, kTaps>, dim3(blocks), kRowWarps * kLanes, 0, b, queue);
  }
  r.parts = p.batch * b.pieces;
  r.groups = p.groups, r.channels = p.channels, r.taps = p.taps;
  r.partial = b.partial;
  const i64 columns = i64(p.groups) * (p.taps + 1) * p.channels;
  launch(conv_reduce, dim3(unsigned(ceil_div(columns, kLanes))), kReductionThreads,
         kReductionThreads * int(sizeof(float)), r, queue);
}

// Calls run(an element of the type, the taps that the kernels are made for).
template <class Run>
void dispatch(Type type, int taps, const Run& run) {
  const auto typed = [&](auto element) {
    taps == 4 ? run(element, std::integral_constant<int, 4>{}) : run(element, std::integral_constant<int, kMostTaps>{});
  };
  if (type == Type::f32) return typed(float{});
  if (type == Type::bf16) return typed(BFloat16{});
  typed(Float16{});
}

inline void forward(Type type, const Forward& f, const Queue& queue) {
  dispatch(type, f.conv.taps, [&](auto element, auto taps) {
    forward_typed<decltype(element), decltype(taps)::value>(f, queue);
  });
}

// Of `r` only where the results go is used.
inline void backward(Type type, const Backward& b, const Reduction& r, const Queue& queue) {
  dispatch(type, b.conv.taps, [&](auto element, auto taps) {
    backward_typed<decltype(element), decltype(taps)::value>(b, r, queue);
  });
}

}  // namespace vmamba::cuda::conv1d
