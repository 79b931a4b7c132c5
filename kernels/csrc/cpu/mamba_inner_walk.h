// The walk of mamba_inner's backward: some states of one vector of channels over one chunk, forward and back again.
#pragma once

namespace {

struct InnerWalk {
  const float *dt, *dtu, *dy;   // [time] vectors
  const float* A2;              // rows of `width`
  i64 width;
  const float *B, *C;           // one row a step, `row` apart
  i64 row;
  const float* state;           // before the chunk, rows of `state_row`
  i64 state_row;
  float *decay, *before;        // scratch, [time][NB] and [time + 1][NB] vectors
};

// Adds to through_B, through_A [time], dB, dC [time] (`sum_row` apart) and dA; moves `carry`, the gradient of the state
// after the chunk, to that of the state before it. `k` is a copy, which no store through a pointer can change.
template <int NB, bool Above>
void walk_states(const InnerWalk k, float* carry, float* through_B, float* through_A, float* dB, float* dC,
                 i64 sum_row, float* dA, i64 steps) {
  constexpr int W = Vec::W;
  const float *B_l = k.B, *C_l = k.C;
  Vec h[NB];
  for (int n = 0; n < NB; ++n) h[n] = Vec::load(k.state + n * k.state_row);
  for (i64 l = 0; l < steps; ++l, B_l += k.row) {
    const Vec dt_l = Vec::load(k.dt + l * W), dtu_l = Vec::load(k.dtu + l * W);
    Vec a[NB];
    for (int n = 0; n < NB; ++n) a[n] = dt_l * Vec::load(k.A2 + n * k.width);
    exp2<Above>(a);
    for (int n = 0; n < NB; ++n) {
      a[n].store(k.decay + (l * NB + n) * W);
      h[n].store(k.before + (l * NB + n) * W);
      h[n] = fma(a[n], h[n], dtu_l * Vec::set(B_l[n]));
    }
  }
  for (int n = 0; n < NB; ++n) h[n].store(k.before + (steps * NB + n) * W);

  Vec g[NB], sum_A[NB];
  for (int n = 0; n < NB; ++n) {
    g[n] = Vec::load(carry + n * k.width);
    sum_A[n] = Vec::load(dA + n * k.width);
  }
  C_l += steps * k.row;
  dB += steps * sum_row;
  dC += steps * sum_row;
  for (i64 l = steps - 1; l >= 0; --l) {
    B_l -= k.row, C_l -= k.row, dB -= sum_row, dC -= sum_row;
    const Vec dt_l = Vec::load(k.dt + l * W), dtu_l = Vec::load(k.dtu + l * W), dy_l = Vec::load(k.dy + l * W);
    Vec to_B = Vec::load(through_B + l * W), to_A = Vec::load(through_A + l * W);
    for (int n = 0; n < NB; ++n) {
      const i64 at = (l * NB + n) * W;
      fma(dy_l, Vec::load(k.before + at + NB * W), Vec::load(dC + n * W)).store(dC + n * W);
      g[n] = fma(Vec::set(C_l[n]), dy_l, g[n]);
      fma(g[n], dtu_l, Vec::load(dB + n * W)).store(dB + n * W);
      to_B = fma(Vec::set(B_l[n]), g[n], to_B);
      g[n] = g[n] * Vec::load(k.decay + at);
      const Vec q = g[n] * Vec::load(k.before + at);
      sum_A[n] = fma(q, dt_l, sum_A[n]);
      to_A = fma(q, Vec::load(k.A2 + n * k.width), to_A);
    }
    to_B.store(through_B + l * W);
    to_A.store(through_A + l * W);
  }
  for (int n = 0; n < NB; ++n) {
    g[n].store(carry + n * k.width);
    sum_A[n].store(dA + n * k.width);
  }
}

}  // namespace
