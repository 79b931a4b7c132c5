// The backward scan: tiles from last to first; each starts from its stored state, runs forward again, then walks back.
#pragma once

namespace {

constexpr float kLn2 = 0.6931471806f;

// Most vectors of channels that are walked back together where there is one state.
constexpr int kBackColumns = 2;

// NB states of one vector of channels over one tile. `decay` and `before` [time][NB] vectors are scratch.
// Adds to through_B, through_A [time], dB, dC [time][NB] vectors and dA; moves `state` to the end of the tile and
// `carry`, the gradient of the state entering from the right, to its start.
template <int NB, bool Above>
void backward_states(const float* dt, const float* dtu, const Rows dy, const float* A2, i64 width, const float* B,
                     const float* C, i64 states, float* state, float* carry, float* decay, float* before,
                     float* through_B, float* through_A, i64 through_stride, float* dB, float* dC, float* dA,
                     i64 steps) {
  constexpr int W = Vec::W;
  Vec h[NB];
  for (int n = 0; n < NB; ++n) h[n] = Vec::load(state + n * width);
  for (i64 l = 0; l < steps; ++l) {
    const Vec dt_l = Vec::load(dt + l * through_stride), dtu_l = Vec::load(dtu + l * through_stride);
    Vec a[NB];
    for (int n = 0; n < NB; ++n) a[n] = dt_l * Vec::load(A2 + n * width);
    exp2<Above>(a);
    for (int n = 0; n < NB; ++n) {
      a[n].store(decay + (l * NB + n) * W);
      h[n].store(before + (l * NB + n) * W);
      h[n] = fma(a[n], h[n], dtu_l * Vec::set(B[l * states + n]));
    }
  }
  Vec g[NB], sum_A[NB];
  for (int n = 0; n < NB; ++n) {
    g[n] = Vec::load(carry + n * width);
    sum_A[n] = Vec::set(0.0f);
  }
  for (i64 l = steps - 1; l >= 0; --l) {
    const Vec dt_l = Vec::load(dt + l * through_stride), dtu_l = Vec::load(dtu + l * through_stride);
    const Vec dy_l = Vec::load(dy.data + l * dy.stride);
    Vec to_B = Vec::load(through_B + l * through_stride), to_A = Vec::load(through_A + l * through_stride);
    for (int n = 0; n < NB; ++n) {
      const i64 at = (l * NB + n) * W;
      const Vec previous = Vec::load(before + at);
      fma(dy_l, h[n], Vec::load(dC + at)).store(dC + at);
      g[n] = fma(Vec::set(C[l * states + n]), dy_l, g[n]);
      fma(g[n], dtu_l, Vec::load(dB + at)).store(dB + at);
      to_B = fma(Vec::set(B[l * states + n]), g[n], to_B);
      g[n] = g[n] * Vec::load(decay + at);
      const Vec q = g[n] * previous;
      sum_A[n] = fma(q, dt_l, sum_A[n]);
      to_A = fma(q, Vec::load(A2 + n * width), to_A);
      h[n] = previous;
    }
    to_B.store(through_B + l * through_stride);
    to_A.store(through_A + l * through_stride);
  }
  for (int n = 0; n < NB; ++n) {
    g[n].store(carry + n * width);
    (Vec::load(dA + n * width) + sum_A[n]).store(dA + n * width);
  }
}

// dt and d(dt)/d(raw delta) [rows][width] from the rows of delta, in two sweeps like `make_dt`.
template <bool Softplus>
void make_dt_and_slope(const Rows delta, const float* bias, i64 width, i64 rows, float* dt, float* slope) {
  constexpr int W = Vec::W;
  if constexpr (Softplus) exp_minus_abs(delta, bias, width, rows, slope);
  for (i64 l = 0; l < rows; ++l)
    for (i64 c = 0; c < width; c += W) {
      const i64 at = l * width + c;
      const Vec x = Vec::load(delta.data + l * delta.stride + c) + Vec::load(bias + c);
      if constexpr (Softplus) {
        const Vec e = Vec::load(slope + at);
        softplus(x, e).store(dt + at);
        sigmoid(x, e).store(slope + at);
      } else {
        x.store(dt + at);
      }
    }
}

// One state, M neighbouring vectors of channels, from the left: the decays and the states before each step.
template <int M, bool Above>
void recompute_one_state(const Rows u, const float* dt, i64 width, const float* A2, const float* B, const float* state,
                         float* decay, float* before, i64 rows) {
  constexpr int W = Vec::W;
  Vec h[M];
  for (int i = 0; i < M; ++i) h[i] = Vec::load(state + i * W);
  for (i64 l = 0; l < rows; ++l) {
    const Vec B_l = Vec::set(B[l]);
    for (int i = 0; i < M; ++i) {
      const i64 at = l * width + i * W;
      const Vec dt_i = Vec::load(dt + at);
      Vec a[1] = {dt_i * Vec::load(A2 + i * W)};
      exp2<Above>(a);
      a[0].store(decay + at);
      h[i].store(before + at);
      h[i] = fma(a[0], h[i], dt_i * Vec::load(u.data + l * u.stride + i * W) * B_l);
    }
  }
  for (int i = 0; i < M; ++i) h[i].store(before + rows * width + i * W);
}

// What the walk back over one state needs, and the sums it adds to.
struct OneState {
  const float *dt, *slope, *decay, *before, *A2, *D, *B, *C;
  float *carry, *dA, *dD, *dbias;
  float *dB, *dC;  // [time] vectors
};

// One state, M neighbouring vectors of channels, from the right: all gradients. `s` is a copy, which no store through a
// pointer can change.
template <int M, bool Softplus>
void backward_one_state(const OneState s, i64 c, i64 width, const Rows u, const Rows dy, const Rows du,
                        const Rows ddelta, i64 rows) {
  constexpr int W = Vec::W;
  Vec g[M], dA[M], dD[M], dbias[M];
  for (int i = 0; i < M; ++i) {
    g[i] = Vec::load(s.carry + c + i * W);
    dA[i] = dD[i] = dbias[i] = Vec::set(0.0f);
  }
  for (i64 l = rows - 1; l >= 0; --l) {
    const Vec B_l = Vec::set(s.B[l]), C_l = Vec::set(s.C[l]);
    Vec dB = Vec::load(s.dB + l * W), dC = Vec::load(s.dC + l * W);
    for (int i = 0; i < M; ++i) {
      const i64 column = c + i * W, at = l * width + column;
      const Vec u_i = Vec::load(u.data + l * u.stride + column), dy_i = Vec::load(dy.data + l * dy.stride + column);
      const Vec dt_i = Vec::load(s.dt + at);
      dC = fma(dy_i, Vec::load(s.before + at + width), dC);
      const Vec g_i = fma(C_l, dy_i, g[i]);
      dB = fma(g_i, dt_i * u_i, dB);
      const Vec to_B = g_i * B_l;
      g[i] = g_i * Vec::load(s.decay + at);
      const Vec q = g[i] * Vec::load(s.before + at);
      dA[i] = fma(q, dt_i, dA[i]);
      fma(to_B, dt_i, Vec::load(s.D + column) * dy_i).store(du.data + l * du.stride + column);
      Vec draw = fma(to_B, u_i, q * Vec::load(s.A2 + column) * Vec::set(kLn2));
      if constexpr (Softplus) draw = draw * Vec::load(s.slope + at);
      draw.store(ddelta.data + l * ddelta.stride + column);
      dD[i] = fma(dy_i, u_i, dD[i]);
      dbias[i] = dbias[i] + draw;
    }
    dB.store(s.dB + l * W);
    dC.store(s.dC + l * W);
  }
  const auto add = [&](float* total, Vec part) { (Vec::load(total) + part).store(total); };
  for (int i = 0; i < M; ++i) {
    g[i].store(s.carry + c + i * W);
    add(s.dA + c + i * W, dA[i]);
    add(s.dD + c + i * W, dD[i]);
    add(s.dbias + c + i * W, dbias[i]);
  }
}

template <bool Softplus, bool Above>
class Backward {
 public:
  explicit Backward(const BackwardArgs& args)
      : args_(args),
        s_(args.sizes),
        widest_(padded(least(s_.block, s_.group_channels))),
        strand_(3 * Scratch::rounded(s_.states * widest_) + 4 * Scratch::rounded(widest_)),
        together_(tasks_together(args.in, strand_)),
        block_(s_.states == 1 ? Scratch::rounded((s_.chunk + 1) * widest_) : s_.chunk * kStates * Vec::W),
        scratch_(together_ * strand_ + 10 * Scratch::rounded(s_.chunk * widest_) +
                 2 * Scratch::rounded(s_.chunk * s_.states) + Scratch::rounded(s_.states * widest_) + 4 * block_),
        strands_(scratch_.take(together_ * strand_)) {
    for (float** tile : {&u_, &delta_, &dy_, &du_, &ddelta_, &dt_, &dtu_, &slope_, &through_B_, &through_A_})
      *tile = scratch_.take(s_.chunk * widest_);
    for (float** projection : {&B_, &C_}) *projection = scratch_.take(s_.chunk * s_.states);
    h_ = scratch_.take(s_.states * widest_);
    for (float** block : {&decay_, &before_, &dB_, &dC_}) *block = scratch_.take(block_);
  }

  // The tasks [begin, end), all of one image, side by side; no more than `together`.
  void run(i64 begin, i64 end);
  i64 together() const { return together_; }

 private:
  void select(i64 strand) {
    A2_ = strands_ + strand * strand_;
    carry_ = A2_ + Scratch::rounded(s_.states * widest_);
    dA_ = carry_ + Scratch::rounded(s_.states * widest_);
    bias_ = dA_ + Scratch::rounded(s_.states * widest_);
    D_ = bias_ + Scratch::rounded(widest_);
    dD_ = D_ + Scratch::rounded(widest_);
    dbias_ = dD_ + Scratch::rounded(widest_);
  }
  void start_task(const Task& task);
  void end_task(const Task& task);
  void load_state(const Task& task, i64 start);
  void one_state(const Task& task, const Tile& tile, Rows u, Rows delta, Rows dy, Rows du, Rows ddelta);
  void many_states(const Task& task, const Tile& tile, Rows u, Rows delta, Rows dy, Rows du, Rows ddelta);
  void walk(const Task& task, const Tile& tile, Rows dy);
  void finish(const Task& task, const Tile& tile, Rows u, Rows dy, Rows du, Rows ddelta);
  i64 projection_row(const Task& task, i64 start) const {
    return ((task.batch * s_.groups + task.group) * s_.blocks() + task.block) * s_.length + start;
  }

  const BackwardArgs& args_;
  const ScanSizes& s_;
  i64 widest_, strand_, together_, block_;
  Scratch scratch_;
  float* strands_;                                               // what each task keeps between tiles
  float *A2_, *carry_, *dA_, *bias_, *D_, *dD_, *dbias_;         // that of the selected task
  float *u_, *delta_, *dy_, *du_, *ddelta_, *dt_, *dtu_, *slope_, *through_B_, *through_A_;  // [time][channel]
  float *B_, *C_;                                                // [time][state]
  float *h_, *decay_, *before_, *dB_, *dC_;
};

template <bool Softplus, bool Above>
void Backward<Softplus, Above>::start_task(const Task& task) {
  const i64 N = s_.states, first = (task.batch * s_.channels() + task.channel) * N;
  load_weights(s_, args_.in, task, A2_, bias_, D_);
  for (i64 n = 0; n < N; ++n)
    for (i64 c = 0; c < task.width; ++c) {
      dA_[n * task.width + c] = 0.0f;
      carry_[n * task.width + c] = args_.dlast_state && c < task.count ? args_.dlast_state[first + c * N + n] : 0.0f;
    }
  for (i64 c = 0; c < task.width; ++c) dD_[c] = dbias_[c] = 0.0f;
}

template <bool Softplus, bool Above>
void Backward<Softplus, Above>::end_task(const Task& task) {
  const i64 N = s_.states, first = task.batch * s_.channels() + task.channel;
  for (i64 c = 0; c < task.count; ++c) {
    for (i64 n = 0; n < N; ++n) args_.dA[(first + c) * N + n] = dA_[n * task.width + c];
    if (args_.dD) args_.dD[first + c] = dD_[c];
    if (args_.ddelta_bias) args_.ddelta_bias[first + c] = dbias_[c];
  }
}

template <bool Softplus, bool Above>
void Backward<Softplus, Above>::load_state(const Task& task, i64 start) {
  for (i64 i = 0; i < s_.states * task.width; ++i) h_[i] = 0.0f;
  if (start == 0) return;
  const i64 index = task.batch * (s_.chunks() - 1) + start / s_.chunk - 1;
  const float* kept = args_.states + index * s_.states * s_.channels() + task.channel;
  for (i64 n = 0; n < s_.states; ++n)
    for (i64 c = 0; c < task.count; ++c) h_[n * task.width + c] = kept[n * s_.channels() + c];
}

template <bool Softplus, bool Above>
void Backward<Softplus, Above>::run(i64 begin, i64 end) {
  for (i64 i = begin; i < end; ++i) {
    select(i - begin);
    start_task(Task(s_, i));
  }
  for (i64 start = (s_.chunks() - 1) * s_.chunk; start >= 0; start -= s_.chunk)
    for (i64 i = begin; i < end; ++i) {
      const Task task(s_, i);
      const Tile tile = task.tile(start, least(s_.chunk, s_.length - start));
      select(i - begin);
      const Rows u = read(args_.in.u, tile, 1, u_);
      const Rows delta = read(args_.in.delta, tile, s_.delta_ratio, delta_);
      const Rows dy = read(args_.dout, tile, 1, dy_);
      const Rows du = write(args_.du, tile, du_), ddelta = write(args_.ddelta, tile, ddelta_);
      if (start) {
        const Tile next = task.tile(start - s_.chunk, s_.chunk);
        for (const Sequence* soon : {&args_.in.u, &args_.in.delta, &args_.dout, &args_.du, &args_.ddelta})
          prefetch(*soon, next);
      }
      pack(args_.in.B, task.batch, task.group, start, tile.steps, s_.states, B_);
      pack(args_.in.C, task.batch, task.group, start, tile.steps, s_.states, C_);
      load_state(task, start);
      if (s_.states == 1)
        one_state(task, tile, u, delta, dy, du, ddelta);
      else
        many_states(task, tile, u, delta, dy, du, ddelta);
      flush(args_.du, tile, du);
      flush(args_.ddelta, tile, ddelta);
    }
  for (i64 i = begin; i < end; ++i) {
    select(i - begin);
    end_task(Task(s_, i));
  }
}

template <bool Softplus, bool Above>
void Backward<Softplus, Above>::one_state(const Task& task, const Tile& tile, Rows u, Rows delta, Rows dy, Rows du,
                                          Rows ddelta) {
  const i64 width = task.width, steps = tile.steps;
  make_dt_and_slope<Softplus>(delta, bias_, width, steps, dt_, slope_);
  for (i64 i = 0; i < steps * Vec::W; ++i) dB_[i] = dC_[i] = 0.0f;
  const OneState state{dt_, slope_, decay_, before_, A2_, D_, B_, C_, carry_, dA_, dD_, dbias_, dB_, dC_};
  const auto columns = [&](auto several, i64 c) {
    constexpr int M = decltype(several)::value;
    recompute_one_state<M, Above>({u.data + c, u.stride}, dt_ + c, width, A2_ + c, B_, h_ + c, decay_ + c, before_ + c,
                                  steps);
    backward_one_state<M, Softplus>(state, c, width, u, dy, du, ddelta, steps);
  };
  i64 c = 0;
  for (; c + kBackColumns * Vec::W <= width; c += kBackColumns * Vec::W)
    columns(std::integral_constant<int, kBackColumns>{}, c);
  for (; c < width; c += Vec::W) columns(std::integral_constant<int, 1>{}, c);
  const i64 row = projection_row(task, tile.start);
  for (i64 l = 0; l < steps; ++l) {
    args_.dB[row + l] = sum(Vec::load(dB_ + l * Vec::W));
    args_.dC[row + l] = sum(Vec::load(dC_ + l * Vec::W));
  }
}

template <bool Softplus, bool Above>
void Backward<Softplus, Above>::many_states(const Task& task, const Tile& tile, Rows u, Rows delta, Rows dy, Rows du,
                                            Rows ddelta) {
  make_dt_and_slope<Softplus>(delta, bias_, task.width, tile.steps, dt_, slope_);
  for (i64 l = 0; l < tile.steps; ++l)
    for (i64 c = 0; c < task.width; c += Vec::W) {
      const i64 at = l * task.width + c;
      (Vec::load(dt_ + at) * Vec::load(u.data + l * u.stride + c)).store(dtu_ + at);
      Vec::set(0.0f).store(through_B_ + at);
      Vec::set(0.0f).store(through_A_ + at);
    }
  walk(task, tile, dy);
  finish(task, tile, u, dy, du, ddelta);
}

template <bool Softplus, bool Above>
void Backward<Softplus, Above>::walk(const Task& task, const Tile& tile, Rows dy) {
  const i64 N = s_.states, width = task.width, steps = tile.steps;
  float* dB_out = args_.dB + projection_row(task, tile.start) * N;
  float* dC_out = args_.dC + projection_row(task, tile.start) * N;
  const auto block = [&](auto several, i64 n) {
    constexpr int NB = decltype(several)::value;
    for (i64 i = 0; i < steps * NB * Vec::W; ++i) dB_[i] = dC_[i] = 0.0f;
    for (i64 c = 0; c < width; c += Vec::W) {
      const i64 at = n * width + c;
      backward_states<NB, Above>(dt_ + c, dtu_ + c, {dy.data + c, dy.stride}, A2_ + at, width, B_ + n, C_ + n, N,
                                 h_ + at, carry_ + at, decay_, before_, through_B_ + c, through_A_ + c, width, dB_,
                                 dC_, dA_ + at, steps);
    }
    for (i64 l = 0; l < steps; ++l)
      for (int i = 0; i < NB; ++i) {
        dB_out[l * N + n + i] = sum(Vec::load(dB_ + (l * NB + i) * Vec::W));
        dC_out[l * N + n + i] = sum(Vec::load(dC_ + (l * NB + i) * Vec::W));
      }
  };
  i64 n = 0;
  for (; n + kStates <= N; n += kStates) block(std::integral_constant<int, kStates>{}, n);
  for (; n + 4 <= N; n += 4) block(std::integral_constant<int, 4>{}, n);
  for (; n < N; ++n) block(std::integral_constant<int, 1>{}, n);
}

template <bool Softplus, bool Above>
void Backward<Softplus, Above>::finish(const Task& task, const Tile& tile, Rows u, Rows dy, Rows du, Rows ddelta) {
  for (i64 c = 0; c < task.width; c += Vec::W) {
    const Vec D = Vec::load(D_ + c);
    Vec dD = Vec::set(0.0f), dbias = Vec::set(0.0f);
    for (i64 l = 0; l < tile.steps; ++l) {
      const i64 at = l * task.width + c;
      const Vec u_l = Vec::load(u.data + l * u.stride + c), dy_l = Vec::load(dy.data + l * dy.stride + c);
      const Vec to_B = Vec::load(through_B_ + at);
      fma(to_B, Vec::load(dt_ + at), D * dy_l).store(du.data + l * du.stride + c);
      Vec draw = fma(to_B, u_l, Vec::load(through_A_ + at) * Vec::set(kLn2));
      if constexpr (Softplus) draw = draw * Vec::load(slope_ + at);
      draw.store(ddelta.data + l * ddelta.stride + c);
      dD = fma(dy_l, u_l, dD);
      dbias = dbias + draw;
    }
    (Vec::load(dD_ + c) + dD).store(dD_ + c);
    (Vec::load(dbias_ + c) + dbias).store(dbias_ + c);
  }
}

template <bool Softplus, bool Above>
void backward_tasks(const BackwardArgs& args, i64 begin, i64 end) {
  Backward<Softplus, Above> scan(args);
  side_by_side(args.sizes, scan.together(), begin, end, [&](i64 from, i64 to) { scan.run(from, to); });
}

void backward(const BackwardArgs& args, i64 begin, i64 end) {
  if (!args.in.softplus) return backward_tasks<false, true>(args, begin, end);
  const bool shrink = all_shrink(args.in.A, args.sizes.channels() * args.sizes.states);
  if (shrink) return backward_tasks<true, false>(args, begin, end);
  backward_tasks<true, true>(args, begin, end);
}

}  // namespace
