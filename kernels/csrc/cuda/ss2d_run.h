// How an ss2d is cut into thread blocks, and the kernels that make up its forward and its backward pass.
#pragma once

#include "launch.h"
#include "ss2d_backward.h"
#include "ss2d_forward.h"
#include "ss2d_reductions.h"

namespace vmamba::cuda {

inline int ss2d_states_at_once(int states) { return states == 1 ? 1 : 2; }

// Lays out the shared memory of a block and returns its bytes.
inline i64 ss2d_lay_out(Ss2d& p, bool backward, bool tallies_shared) {
  const auto round_up = [](int count, int unit) { return (count + unit - 1) / unit * unit; };
  const int at_once = ss2d_states_at_once(p.states);
  Ss2dMemory& m = p.memory;
  p.log_width = p.width == 8 ? 3 : p.width == 16 ? 4 : 5;
  p.log_columns = p.section() > 16 ? 5 : p.section() > 8 ? 4 : p.section() > 4 ? 3 : 2;
  p.rows_at_once = kLanes >> p.log_columns;
  p.warp_steps = (kLanes * kSteps) >> p.log_width;
  m.ranks = round_up(p.rank, 4);
  m.states = round_up(p.states, at_once);
  m.B = m.ranks;
  m.C = m.ranks + m.states;
  m.slot_pitch = kSteps * round_up(m.C + m.states, 4) + 4;
  m.weights_pitch = p.width + 4;
  m.decay = m.ranks * m.weights_pitch;
  m.carry = m.decay + m.states * p.width;
  m.totals = m.carry + 2 * m.states * p.width;
  m.rows = m.totals + 2 * at_once * (backward ? 3 : 2) * p.threads;
  m.channels = m.rows + p.slots() * m.slot_pitch;
  m.channels_pitch = p.width + 4;
  m.tallies = m.channels + (backward ? p.tile() * m.channels_pitch : 0);
  m.sums = m.tallies + (backward && tallies_shared ? m.tally_rows() * p.threads : 0);
  return (m.sums + (p.sums_shared && p.directions > 1 ? p.length * p.width : 0)) * i64(sizeof(float));
}

// Chooses the channels and threads of a block. The sum over directions should lie in shared memory, and the blocks
// should be as many as the GPU has multiprocessors; where both cannot be had, the sum goes to device memory.
// `shared_bytes`: what a block may have of shared memory. Returns whether anything fits.
inline bool ss2d_plan(Ss2d& p, bool& tallies_shared, bool backward, i64 shared_bytes, int processors) {
  const int least = backward ? kStoredEvery / kSteps : 1;  // slots: a tile of the backward starts at a stored state
  const auto fits = [&](int width, bool sums, bool tallies, int least_threads) {
    p.width = width, p.log_width = width == 8 ? 3 : width == 16 ? 4 : 5;
    p.sums_shared = sums, tallies_shared = tallies;
    for (p.threads = kSs2dThreads; p.threads >= least_threads; p.threads /= 2) {
      const bool longer_than_scan = p.threads > kLanes && p.tile() / 2 >= p.length;
      if (p.slots() < least || (longer_than_scan && p.slots() / 2 >= least)) continue;
      if (ss2d_lay_out(p, backward, tallies) <= shared_bytes) return true;
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
  return b.tallies_shared ? 0 : p.batch * b.groups * p.memory.tally_rows() * p.threads;
}
inline i64 ss2d_row_floats(const Ss2dBackward& b) {
  const Ss2d& p = b.ss2d;
  return b.parts() * p.batch * p.length * p.row();
}
inline i64 ss2d_backward_floats(const Ss2dBackward& b) {
  const Ss2d& p = b.ss2d;
  const i64 sums = p.sums_shared || p.directions == 1 ? 0 : p.batch * b.groups * p.length * p.width;
  const i64 weights = p.batch * (p.rank + p.states + 2) * i64(p.directions) * p.channels;
  return sums + ss2d_row_floats(b) + ss2d_tally_floats(b) + weights;
}

template <typename T>
void ss2d_forward_of(Ss2dForward f, float* scratch, const Queue& queue) {
  Ss2d& p = f.ss2d;
  p.sums = scratch;
  const dim3 grid(unsigned(p.batch * p.blocks()));
  const int bytes = int(ss2d_lay_out(p, false, false));
  if (p.states == 1)
    launch(ss2d_forward<T, 1, 1>, grid, p.threads, bytes, f, queue);
  else if (p.states == 16)
    launch(ss2d_forward<T, 2, 16>, grid, p.threads, bytes, f, queue);
  else
    launch(ss2d_forward<T, 2, 0>, grid, p.threads, bytes, f, queue);
}

// Of `r` only where the results go is used.
template <typename T>
void ss2d_backward_of(Ss2dBackward b, Ss2dReduction r, float* scratch, const Queue& queue) {
  Ss2d& p = b.ss2d;
  const i64 KC = i64(p.directions) * p.channels;
  const auto take = [&](i64 floats) { return scratch += floats, scratch - floats; };
  b.partial_rows = take(ss2d_row_floats(b));
  if (b.atomics) clear(b.partial_rows, ss2d_row_floats(b), queue);
  b.partial_weights = take(p.batch * (p.rank + p.states + 2) * KC);
  b.tallies = take(ss2d_tally_floats(b));
  p.sums = scratch;
  const dim3 grid(unsigned(p.batch * b.groups));
  const int bytes = int(ss2d_lay_out(p, true, b.tallies_shared));
  if (p.states == 1)
    launch(ss2d_backward<T, 1, 1>, grid, p.threads, bytes, b, queue);
  else if (p.states == 16)
    launch(ss2d_backward<T, 2, 16>, grid, p.threads, bytes, b, queue);
  else
    launch(ss2d_backward<T, 2, 0>, grid, p.threads, bytes, b, queue);

  r.ss2d = p;
  r.parts = b.parts();
  r.partial_rows = b.partial_rows;
  r.partial_weights = b.partial_weights;
  const i64 blocks = ceil_div(p.batch * p.length * p.row(), kSs2dReductionThreads);
  launch(ss2d_reduce_rows<T>, dim3(unsigned(blocks < 65536 ? blocks : 65536)), kSs2dReductionThreads, 0, r, queue);
  launch(ss2d_reduce_weights<T>, dim3(unsigned(ceil_div((p.rank + p.states + 2) * KC, kLanes))), kSs2dReductionThreads,
         kSs2dReductionThreads * int(sizeof(float)), r, queue);
}

}  // namespace vmamba::cuda
