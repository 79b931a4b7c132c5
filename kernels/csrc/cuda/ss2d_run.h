// How an ss2d is cut into thread blocks, and the kernels that make up its forward and its backward pass.
#pragma once

#include "launch.h"
#include "ss2d_backward.h"
#include "ss2d_forward.h"
#include "ss2d_reductions.h"

namespace vmamba::cuda {

inline int ss2d_states_at_once(int states, bool backward) { return states == 1 ? 1 : backward ? 2 : 4; }

// Chooses the channels and threads of a block. The sum over directions should lie in shared memory, and the blocks
// should be as many as the GPU has multiprocessors; where both cannot be had, the sum goes to device memory.
// `shared_bytes`: what a block may have of shared memory. Returns whether anything fits.
inline bool ss2d_plan(Ss2d& p, bool& tallies_shared, bool backward, i64 shared_bytes, int processors) {
  const int states = ss2d_states_at_once(p.states, backward);
  const int least = backward ? kStoredEvery / kSteps : 1;  // slots: a tile of the backward starts at a stored state
  const auto fits = [&](int width, bool sums, bool tallies, int least_threads) {
    p.width = width, p.sums_shared = sums, tallies_shared = tallies;
    for (p.threads = kSs2dThreads; p.threads >= least_threads; p.threads /= 2) {
      const bool longer_than_scan = p.threads > kLanes && p.tile() / 2 >= p.length;
      if (p.slots() < least || (longer_than_scan && p.slots() / 2 >= least)) continue;
      if (Ss2dMemory(p, states, backward).bytes(p, backward && tallies) <= shared_bytes) return true;
    }
    return false;
  };
  int widest = 32;
  while (widest > 8 && widest / 2 >= p.channels) widest /= 2;
  int found = 0;
  bool found_tallies = false;
  for (int width = widest; width >= 8; width /= 2) {
    for (const bool tallies : {true, false}) {
      if (!fits(width, true, tallies, kLanes)) continue;
      found = width, found_tallies = tallies;
      if (p.batch * p.blocks() >= processors) return true;
      break;
    }
  }
  if (found) return fits(found, true, found_tallies, kLanes);
  for (const int least_threads : {128, kLanes})
    for (const bool tallies : {true, false})
      for (int width = widest; width >= 8; width /= 2)
        if (fits(width, false, tallies, least_threads)) return true;
  return false;
}

inline int ss2d_groups(const Ss2d& p, int processors) {
  const i64 wanted = p.batch > 0 ? ceil_div(2 * i64(processors), p.batch) : 1;
  return int(wanted < p.blocks() ? wanted : p.blocks());
}

// Floats of scratch memory.
inline i64 ss2d_forward_floats(const Ss2d& p) {
  return p.sums_shared || p.directions == 1 ? 0 : p.batch * p.blocks() * p.length * p.width;
}
inline i64 ss2d_tally_floats(const Ss2dBackward& b) {
  const Ss2d& p = b.ss2d;
  const Ss2dMemory m(p, ss2d_states_at_once(p.states, true), true);
  return b.tallies_shared ? 0 : p.batch * b.groups * m.tally_rows() * p.threads;
}
inline i64 ss2d_backward_floats(const Ss2dBackward& b) {
  const Ss2d& p = b.ss2d;
  const i64 sums = p.sums_shared || p.directions == 1 ? 0 : p.batch * b.groups * p.length * p.width;
  const i64 rows = b.groups * p.batch * p.length * p.row();
  return sums + rows + ss2d_tally_floats(b) + p.batch * (p.rank + p.states + 2) * i64(p.directions) * p.channels;
}

template <typename T>
void ss2d_forward_of(Ss2dForward f, float* scratch, const Queue& queue) {
  Ss2d& p = f.ss2d;
  p.sums = scratch;
  const dim3 grid(unsigned(p.batch * p.blocks()));
  const int bytes = int(Ss2dMemory(p, ss2d_states_at_once(p.states, false), false).bytes(p, false));
  if (p.states == 1)
    launch(ss2d_forward<T, 1, 1>, grid, p.threads, bytes, f, queue);
  else if (p.states == 16)
    launch(ss2d_forward<T, 4, 16>, grid, p.threads, bytes, f, queue);
  else
    launch(ss2d_forward<T, 4, 0>, grid, p.threads, bytes, f, queue);
}

// Of `r` only where the results go is used.
template <typename T>
void ss2d_backward_of(Ss2dBackward b, Ss2dReduction r, float* scratch, const Queue& queue) {
  Ss2d& p = b.ss2d;
  const i64 KC = i64(p.directions) * p.channels;
  const auto take = [&](i64 floats) { return scratch += floats, scratch - floats; };
  b.partial_rows = take(b.groups * p.batch * p.length * p.row());
  b.partial_weights = take(p.batch * (p.rank + p.states + 2) * KC);
  b.tallies = take(ss2d_tally_floats(b));
  p.sums = scratch;
  const dim3 grid(unsigned(p.batch * b.groups));
  const int bytes = int(Ss2dMemory(p, ss2d_states_at_once(p.states, true), true).bytes(p, b.tallies_shared));
  if (p.states == 1)
    launch(ss2d_backward<T, 1, 1>, grid, p.threads, bytes, b, queue);
  else if (p.states == 16)
    launch(ss2d_backward<T, 2, 16>, grid, p.threads, bytes, b, queue);
  else
    launch(ss2d_backward<T, 2, 0>, grid, p.threads, bytes, b, queue);

  r.ss2d = p;
  r.groups = b.groups;
  r.partial_rows = b.partial_rows;
  r.partial_weights = b.partial_weights;
  const i64 blocks = ceil_div(p.batch * p.length * p.row(), kSs2dReductionThreads);
  launch(ss2d_reduce_rows<T>, dim3(unsigned(blocks < 65536 ? blocks : 65536)), kSs2dReductionThreads, 0, r, queue);
  launch(ss2d_reduce_weights<T>, dim3(unsigned(ceil_div((p.rank + p.states + 2) * KC, kLanes))), kSs2dReductionThreads,
         kSs2dReductionThreads * int(sizeof(float)), r, queue);
}

}  // namespace vmamba::cuda
