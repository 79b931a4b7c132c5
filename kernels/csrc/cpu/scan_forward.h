// The forward scan: vectors lie across channels, time is the outer loop, states stay in registers.
#pragma once

namespace {

// Most states of one channel vector that are walked together.
constexpr int kStates = Vec::W == 16 ? 8 : 4;

// Most vectors of channels that are walked together where there is one state.
constexpr int kColumns = 3;

// e [rows][width] = exp(-|delta + bias|), M neighbouring vectors of channels in step.
template <int M>
void exp_minus_abs(const Rows delta, const float* bias, i64 width, i64 rows, float* e) {
  constexpr int W = Vec::W;
  Vec b[M];
  for (int i = 0; i < M; ++i) b[i] = Vec::load(bias + i * W) * Vec::set(kLog2e);
  for (i64 l = 0; l < rows; ++l) {
    Vec x[M];
    for (int i = 0; i < M; ++i) x[i] = fma(Vec::load(delta.data + l * delta.stride + i * W), Vec::set(kLog2e), b[i]);
    for (int i = 0; i < M; ++i) x[i] = minus_abs(x[i]);
    exp2<false>(x);
    for (int i = 0; i < M; ++i) x[i].store(e + l * width + i * W);
  }
}

inline void exp_minus_abs(const Rows delta, const float* bias, i64 width, i64 rows, float* e) {
  i64 c = 0;
  for (; c + 2 * Vec::W <= width; c += 2 * Vec::W)
    exp_minus_abs<2>({delta.data + c, delta.stride}, bias + c, width, rows, e + c);
  for (; c < width; c += Vec::W) exp_minus_abs<1>({delta.data + c, delta.stride}, bias + c, width, rows, e + c);
}

// dt [rows][width] from the rows of delta, with e as scratch. In two sweeps: the chain delta -> exp -> log is longer
// than what a processor looks ahead, and the neighbours in one sweep do not wait for each other.
template <bool Softplus>
void make_dt(const Rows delta, const float* bias, i64 width, i64 rows, float* dt, float* e) {
  constexpr int W = Vec::W;
  if constexpr (Softplus) exp_minus_abs(delta, bias, width, rows, e);
  for (i64 l = 0; l < rows; ++l)
    for (i64 c = 0; c < width; c += W) {
      const i64 at = l * width + c;
      const Vec x = Vec::load(delta.data + l * delta.stride + c) + Vec::load(bias + c);
      if constexpr (Softplus)
        softplus(x, Vec::load(e + at)).store(dt + at);
      else
        x.store(dt + at);
    }
}

// One state: M neighbouring vectors of channels in step.
template <int M, bool Above>
void forward_one_state(const Rows u, const float* dt, i64 dt_stride, const Rows y, const float* A2, const float* D,
                       const float* B, i64 B_stride, const float* C, i64 C_stride, float* state, i64 rows) {
  constexpr int W = Vec::W;
  Vec h[M];
  for (int i = 0; i < M; ++i) h[i] = Vec::load(state + i * W);
  for (i64 l = 0; l < rows; ++l) {
    const float* u_l = u.data + l * u.stride;
    const float* dt_l = dt + l * dt_stride;
    float* y_l = y.data + l * y.stride;
    const Vec B_l = Vec::set(B[l * B_stride]), C_l = Vec::set(C[l * C_stride]);
    for (int i = 0; i < M; ++i) {
      const Vec u_i = Vec::load(u_l + i * W), dt_i = Vec::load(dt_l + i * W);
      Vec a[1] = {dt_i * Vec::load(A2 + i * W)};
      exp2<Above>(a);
      h[i] = fma(a[0], h[i], dt_i * u_i * B_l);
      fma(C_l, h[i], Vec::load(D + i * W) * u_i).store(y_l + i * W);
    }
  }
  for (int i = 0; i < M; ++i) h[i].store(state + i * W);
}

// dt, dt * u and D * u of one vector of channels, side by side in time; `dt` has rows of `width`.
VMAMBA_INLINE void start_column(const Rows u, const float* dt, i64 width, Vec D, i64 steps, float* dt_column,
                                float* dtu_column, float* y_column) {
  for (i64 l = 0; l < steps; ++l) {
    const Vec dt_l = Vec::load(dt + l * width), u_l = Vec::load(u.data + l * u.stride);
    dt_l.store(dt_column + l * Vec::W);
    (dt_l * u_l).store(dtu_column + l * Vec::W);
    (D * u_l).store(y_column + l * Vec::W);
  }
}

// NB states of one vector of channels, adding to y.
template <int NB, bool Above>
void forward_states(const float* dt, const float* dtu, float* y, const float* A2, i64 width, const float* B,
                    const float* C, i64 states, float* state, i64 steps) {
  Vec h[NB];
  for (int n = 0; n < NB; ++n) h[n] = Vec::load(state + n * width);
  for (i64 l = 0; l < steps; ++l) {
    const Vec dt_l = Vec::load(dt + l * Vec::W), dtu_l = Vec::load(dtu + l * Vec::W);
    const float* B_l = B + l * states;
    const float* C_l = C + l * states;
    Vec a[NB];
    for (int n = 0; n < NB; ++n) a[n] = dt_l * Vec::load(A2 + n * width);
    exp2<Above>(a);
    Vec y_l = Vec::load(y + l * Vec::W);
    for (int n = 0; n < NB; ++n) {
      h[n] = fma(a[n], h[n], dtu_l * Vec::set(B_l[n]));
      y_l = fma(Vec::set(C_l[n]), h[n], y_l);
    }
    y_l.store(y + l * Vec::W);
  }
  for (int n = 0; n < NB; ++n) h[n].store(state + n * width);
}

template <bool Softplus, bool Above>
class Forward {
 public:
  explicit Forward(const ForwardArgs& args)
      : args_(args),
        s_(args.sizes),
        widest_(padded(least(s_.block, s_.group_channels))),
        strand_(2 * Scratch::rounded(s_.states * widest_) + 2 * Scratch::rounded(widest_)),
        together_(tasks_together(args.in, strand_)),
        scratch_(together_ * strand_ + 5 * Scratch::rounded(s_.chunk * widest_) +
                 2 * Scratch::rounded(s_.chunk * s_.states) + 3 * s_.chunk * Vec::W),
        strands_(scratch_.take(together_ * strand_)) {
    for (float** tile : {&u_, &delta_, &y_, &dt_, &e_}) *tile = scratch_.take(s_.chunk * widest_);
    for (float** projection : {&B_, &C_}) *projection = scratch_.take(s_.chunk * s_.states);
    for (float** column : {&dt_column_, &dtu_column_, &y_column_}) *column = scratch_.take(s_.chunk * Vec::W);
  }

  // The tasks [begin, end), all of one image, side by side; no more than `together`.
  void run(i64 begin, i64 end);
  i64 together() const { return together_; }

 private:
  void select(i64 strand) {
    A2_ = strands_ + strand * strand_;
    h_ = A2_ + Scratch::rounded(s_.states * widest_);
    bias_ = h_ + Scratch::rounded(s_.states * widest_);
    D_ = bias_ + Scratch::rounded(widest_);
  }
  void keep_state(const Task& task, i64 start);
  void one_state(const Task& task, const Tile& tile, Rows u, Rows delta, Rows y);
  void many_states(const Task& task, const Tile& tile, Rows u, Rows delta, Rows y);

  const ForwardArgs& args_;
  const ScanSizes& s_;
  i64 widest_, strand_, together_;
  Scratch scratch_;
  float* strands_;                       // what each task keeps between tiles: A2, h, bias, D
  float *A2_, *h_, *bias_, *D_;          // those of the selected task
  float *u_, *delta_, *y_, *dt_, *e_;    // [time][channel] of one tile
  float *B_, *C_;                        // [time][state] of one tile
  float *dt_column_, *dtu_column_, *y_column_;
};

template <bool Softplus, bool Above>
void Forward<Softplus, Above>::run(i64 begin, i64 end) {
  for (i64 i = begin; i < end; ++i) {
    const Task task(s_, i);
    select(i - begin);
    load_weights(s_, args_.in, task, A2_, bias_, D_);
    for (i64 j = 0; j < s_.states * task.width; ++j) h_[j] = 0.0f;
  }
  for (i64 start = 0; start < s_.length; start += s_.chunk)
    for (i64 i = begin; i < end; ++i) {
      const Task task(s_, i);
      const Tile tile = task.tile(start, least(s_.chunk, s_.length - start));
      select(i - begin);
      if (start && args_.states) keep_state(task, start);
      const Rows u = read(args_.in.u, tile, 1, u_);
      const Rows delta = read(args_.in.delta, tile, s_.delta_ratio, delta_);
      const Rows y = write(args_.out, tile, y_);
      if (s_.states == 1)
        one_state(task, tile, u, delta, y);
      else
        many_states(task, tile, u, delta, y);
      flush(args_.out, tile, y);
    }
  for (i64 i = begin; i < end; ++i) {
    const Task task(s_, i);
    select(i - begin);
    float* last = args_.last_state + (task.batch * s_.channels() + task.channel) * s_.states;
    for (i64 c = 0; c < task.count; ++c)
      for (i64 n = 0; n < s_.states; ++n) last[c * s_.states + n] = h_[n * task.width + c];
  }
}

template <bool Softplus, bool Above>
void Forward<Softplus, Above>::keep_state(const Task& task, i64 start) {
  const i64 index = task.batch * (s_.chunks() - 1) + start / s_.chunk - 1;
  float* kept = args_.states + index * s_.states * s_.channels() + task.channel;
  for (i64 n = 0; n < s_.states; ++n)
    for (i64 c = 0; c < task.count; ++c) kept[n * s_.channels() + c] = h_[n * task.width + c];
}

template <bool Softplus, bool Above>
void Forward<Softplus, Above>::one_state(const Task& task, const Tile& tile, Rows u, Rows delta, Rows y) {
  const auto direct = [&](const Projection& p, float* packed, const float*& data, i64& stride) {
    if (p.type == Type::f32) {
      data = static_cast<const float*>(p.data) + task.batch * p.batch_stride + task.group * p.group_stride +
             tile.start * p.time_stride;
      stride = p.time_stride;
    } else {
      pack(p, task.batch, task.group, tile.start, tile.steps, 1, packed);
      data = packed;
      stride = 1;
    }
  };
  const float *B, *C;
  i64 B_stride, C_stride;
  direct(args_.in.B, B_, B, B_stride);
  direct(args_.in.C, C_, C, C_stride);
  make_dt<Softplus>(delta, bias_, task.width, tile.steps, dt_, e_);
  const auto columns = [&](auto several, i64 c) {
    constexpr int M = decltype(several)::value;
    forward_one_state<M, Above>({u.data + c, u.stride}, dt_ + c, task.width, {y.data + c, y.stride}, A2_ + c, D_ + c, B,
                                B_stride, C, C_stride, h_ + c, tile.steps);
  };
  i64 c = 0;
  for (; c + kColumns * Vec::W <= task.width; c += kColumns * Vec::W)
    columns(std::integral_constant<int, kColumns>{}, c);
  for (; c < task.width; c += Vec::W) columns(std::integral_constant<int, 1>{}, c);
}

template <bool Softplus, bool Above>
void Forward<Softplus, Above>::many_states(const Task& task, const Tile& tile, Rows u, Rows delta, Rows y) {
  const i64 N = s_.states, steps = tile.steps;
  pack(args_.in.B, task.batch, task.group, tile.start, steps, N, B_);
  pack(args_.in.C, task.batch, task.group, tile.start, steps, N, C_);
  make_dt<Softplus>(delta, bias_, task.width, steps, dt_, e_);
  for (i64 c = 0; c < task.width; c += Vec::W) {
    start_column({u.data + c, u.stride}, dt_ + c, task.width, Vec::load(D_ + c), steps, dt_column_, dtu_column_,
                 y_column_);
    const auto block = [&](auto several, i64 n) {
      constexpr int NB = decltype(several)::value;
      forward_states<NB, Above>(dt_column_, dtu_column_, y_column_, A2_ + n * task.width + c, task.width, B_ + n,
                                C_ + n, N, h_ + n * task.width + c, steps);
    };
    i64 n = 0;
    for (; n + kStates <= N; n += kStates) block(std::integral_constant<int, kStates>{}, n);
    for (; n + 4 <= N; n += 4) block(std::integral_constant<int, 4>{}, n);
    for (; n < N; ++n) block(std::integral_constant<int, 1>{}, n);
    for (i64 l = 0; l < steps; ++l) Vec::load(y_column_ + l * Vec::W).store(y.data + l * y.stride + c);
  }
}

template <bool Softplus, bool Above>
void forward_tasks(const ForwardArgs& args, i64 begin, i64 end) {
  Forward<Softplus, Above> scan(args);
  side_by_side(args.sizes, scan.together(), begin, end, [&](i64 from, i64 to) { scan.run(from, to); });
}

void forward(const ForwardArgs& args, i64 begin, i64 end) {
  if (!args.in.softplus) return forward_tasks<false, true>(args, begin, end);
  const bool shrink = all_shrink(args.in.A, args.sizes.channels() * args.sizes.states);
  if (shrink) return forward_tasks<true, false>(args, begin, end);
  forward_tasks<true, true>(args, begin, end);
}

}  // namespace
