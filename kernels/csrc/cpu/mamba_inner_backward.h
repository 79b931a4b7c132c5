// The backward of mamba_inner: the gradient through the gate, row by row; then a task owns one direction of some images
// and some blocks of channels, so that every sum has one owner. Chunks are walked from the last to the first, each from
// its stored state.
#pragma once

namespace {

void inner_gate_backward(const InnerBackwardArgs& a, i64 begin, i64 end) {
  const InnerSizes& s = a.sizes;
  const Vec one = Vec::set(1.0f), scale = Vec::set(s.scale);
  for (i64 row = begin; row < end; ++row) {
    const i64 batch = row / s.length, l = row % s.length;
    const auto at = [&](const TokenRows& rows) { return rows.data + batch * rows.batch_stride + l * rows.stride; };
    const float *dout = at(a.dout), *z = at(a.in.z), *scanned = a.scanned + row * s.channels;
    float *dz = at(a.dz), *dy = a.dy + row * s.channels;
    for (i64 c = 0; c < s.channels; c += Vec::W) {
      const Vec d = Vec::load(dout + c) * scale, z_c = Vec::load(z + c), slope = logistic(z_c);
      (d * z_c * slope).store(dy + c);
      (d * Vec::load(scanned + c) * slope * fma(z_c, one - slope, one)).store(dz + c);
    }
  }
}

template <bool Above>
class InnerBackward {
 public:
  explicit InnerBackward(const InnerBackwardArgs& args)
      : args_(args),
        s_(args.sizes),
        blocks_((s_.blocks() + s_.block_groups - 1) / s_.block_groups),
        padded_rank_(padded(s_.rank)),
        kept_(DirectionWeights::floats(s_) + (s_.states + padded_rank_) * s_.block + s_.weights() * s_.block),
        scratch_(blocks_ * kept_ + 3 * s_.chunk * s_.block + 5 * s_.chunk * Vec::W +
                 (2 * s_.chunk + 1) * kStates * Vec::W + 2 * s_.chunk * s_.states * Vec::W +
                 2 * s_.chunk * padded_rank_ + 16 * 16),
        strands_(scratch_.take(blocks_ * kept_)) {
    for (float** tile : {&delta_, &dt_, &slope_}) *tile = scratch_.take(s_.chunk * s_.block);
    for (float** column : {&dt_column_, &dtu_column_, &dy_column_, &through_B_, &through_A_})
      *column = scratch_.take(s_.chunk * Vec::W);
    decay_ = scratch_.take(s_.chunk * kStates * Vec::W);
    before_ = scratch_.take((s_.chunk + 1) * kStates * Vec::W);
    for (float** sum : {&dB_, &dC_}) *sum = scratch_.take(s_.chunk * s_.states * Vec::W);
    for (float** rank : {&drank_, &drank_block_}) *rank = scratch_.take(s_.chunk * padded_rank_);
  }

  void run(i64 task);

 private:
  // What a block of channels keeps from chunk to chunk.
  struct Strand {
    DirectionWeights weights;
    float *carry, *rank_weight, *dW, *dA, *dD, *dbias;  // [N][w], [w][padded R], [R][w], [N][w], [w], [w]

    Strand(const InnerSizes& s, i64 padded_rank, float* room)
        : weights(s, room),
          carry(room + DirectionWeights::floats(s)),
          rank_weight(carry + s.states * s.block),
          dW(rank_weight + padded_rank * s.block),
          dA(dW + s.rank * s.block),
          dD(dA + s.states * s.block),
          dbias(dD + s.block) {}
  };
  // A block of channels: the first of them, and how many they are.
  struct Channels {
    i64 first, width;
  };

  Strand strand(i64 i) const { return Strand(s_, padded_rank_, strands_ + i * kept_); }
  Channels channels(i64 block) const {
    return {block * s_.block, least(s_.block, s_.channels - block * s_.block)};
  }
  void start(i64 g, const Channels& c, const Strand& k);
  void tile(i64 batch, i64 g, i64 chunk, const Channels& c, const Strand& k);
  void column(const Channels& c, const Strand& k, i64 first, const float* states, Rows p, Rows u, Rows dy, Rows du,
              i64 steps);
  void write_x_dbl(i64 batch, i64 g, i64 chunk, i64 block_group);

  const InnerBackwardArgs& args_;
  const InnerSizes& s_;
  const i64 blocks_, padded_rank_, kept_;
  Scratch scratch_;
  float* strands_;
  float *delta_, *dt_, *slope_;                                               // [time][width]
  float *dt_column_, *dtu_column_, *dy_column_, *through_B_, *through_A_;     // [time] vectors
  float *decay_, *before_;                                                    // [time][states walked together] vectors
  float *dB_, *dC_;                                                           // [time][N] vectors
  float *drank_, *drank_block_;                                               // [time][padded R]
};

template <bool Above>
void InnerBackward<Above>::run(i64 task) {
  const i64 block_group = task % s_.block_groups, g = task / s_.block_groups % s_.directions;
  const i64 batch_group = task / s_.block_groups / s_.directions;
  const i64 first = s_.blocks() * block_group / s_.block_groups;
  const i64 last = s_.blocks() * (block_group + 1) / s_.block_groups;
  for (i64 i = first; i < last; ++i) start(g, channels(i), strand(i - first));
  const i64 end = s_.batch * (batch_group + 1) / s_.batch_groups;
  for (i64 batch = s_.batch * batch_group / s_.batch_groups; batch < end; ++batch) {
    for (i64 i = first; i < last; ++i) {
      const Strand k = strand(i - first);
      for (i64 j = 0; j < s_.states * channels(i).width; ++j) k.carry[j] = 0.0f;
    }
    for (i64 chunk = s_.chunks() - 1; chunk >= 0; --chunk) {
      for (i64 i = 0; i < s_.chunk * s_.states * Vec::W; ++i) dB_[i] = dC_[i] = 0.0f;
      for (i64 i = 0; i < s_.chunk * padded_rank_; ++i) drank_[i] = 0.0f;
      for (i64 i = first; i < last; ++i) tile(batch, g, chunk, channels(i), strand(i - first));
      write_x_dbl(batch, g, chunk, block_group);
    }
  }
  for (i64 i = first; i < last; ++i) {
    const Channels c = channels(i);
    const Strand k = strand(i - first);
    float* to = args_.weights + (batch_group * s_.directions + g) * s_.weights() * s_.channels + c.first;
    const auto store = [&](const float* from, i64 rows) {
      for (i64 r = 0; r < rows; ++r, to += s_.channels)
        for (i64 j = 0; j < c.width; ++j) to[j] = from[r * c.width + j];
    };
    store(k.dW, s_.rank);
    store(k.dA, s_.states);
    store(k.dD, 1);
    store(k.dbias, 1);
  }
}

template <bool Above>
void InnerBackward<Above>::start(i64 g, const Channels& c, const Strand& k) {
  k.weights.load(s_, args_.in, g, c.first, c.width);
  const float* from = args_.in.dt_weight + (g * s_.channels + c.first) * s_.rank;
  for (i64 i = 0; i < c.width; ++i)
    for (i64 r = 0; r < padded_rank_; ++r)
      k.rank_weight[i * padded_rank_ + r] = r < s_.rank ? from[i * s_.rank + r] : 0.0f;
  for (i64 i = 0; i < s_.weights() * s_.block; ++i) k.dW[i] = 0.0f;
}

template <bool Above>
void InnerBackward<Above>::tile(i64 batch, i64 g, i64 chunk, const Channels& c, const Strand& k) {
  const i64 start = chunk * s_.chunk, steps = least(s_.chunk, s_.length - start), all = s_.all_channels();
  const i64 image = batch * s_.length, channel = g * s_.channels + c.first;
  const Rows p = in_time(s_, g, start, args_.in.x_dbl + image * s_.row() + g * s_.section(), s_.row());
  const Rows u = in_time(s_, g, start, args_.in.u + image * all + channel, all);
  const Rows dy = in_time(s_, g, start, args_.dy + image * s_.channels + c.first, s_.channels);
  const Rows du = in_time(s_, g, start, args_.du + image * all + channel, all);
  const float* states = args_.states + (batch * s_.kept + chunk) * s_.states * all + channel;
  if (chunk) {
    for (const Rows& rows : {u, dy, du})
      prefetch_rows({rows.data - s_.chunk * rows.stride, rows.stride}, s_.chunk, c.width);
    prefetch_rows({const_cast<float*>(states) - s_.states * all, all}, s_.states, c.width);
  }
  project_steps(s_, k.weights.dt, c.width, p, steps, delta_);
  make_dt_and_slope<true>({delta_, c.width}, k.weights.bias, c.width, steps, dt_, slope_);
  for (i64 i = 0; i < c.width; i += Vec::W) column(c, k, i, states, p, u, dy, du, steps);
  add_weight_gradient(s_.rank, p.data, p.stride, delta_, c.width, steps, k.dW);
  rank_gradient(delta_, c.width, c.width, steps, k.rank_weight, padded_rank_, drank_block_);
  for (i64 i = 0; i < steps * padded_rank_; ++i) drank_[i] += drank_block_[i];
}

// All states of one vector of channels; leaves the gradient of delta in its place.
template <bool Above>
void InnerBackward<Above>::column(const Channels& c, const Strand& k, i64 first, const float* states, Rows p, Rows u,
                                  Rows dy, Rows du, i64 steps) {
  constexpr int W = Vec::W;
  for (i64 l = 0; l < steps; ++l) {
    const Vec dt_l = Vec::load(dt_ + l * c.width + first);
    dt_l.store(dt_column_ + l * W);
    (dt_l * Vec::load(u.data + l * u.stride + first)).store(dtu_column_ + l * W);
    Vec::load(dy.data + l * dy.stride + first).store(dy_column_ + l * W);
    Vec::set(0.0f).store(through_B_ + l * W);
    Vec::set(0.0f).store(through_A_ + l * W);
  }
  const float *B = p.data + s_.rank, *C = B + s_.states;
  by_states(s_.states, [&](auto several, i64 n) {
    const i64 at = n * c.width + first;
    walk_states<decltype(several)::value, Above>(
        {dt_column_, dtu_column_, dy_column_, k.weights.A2 + at, c.width, B + n, C + n, p.stride,
         states + n * s_.all_channels() + first, s_.all_channels(), decay_, before_},
        k.carry + at, through_B_, through_A_, dB_ + n * W, dC_ + n * W, s_.states * W, k.dA + at, steps);
  });
  const Vec D = Vec::load(k.weights.D + first);
  Vec dD = Vec::load(k.dD + first), dbias = Vec::load(k.dbias + first);
  for (i64 l = 0; l < steps; ++l) {
    const Vec u_l = Vec::load(u.data + l * u.stride + first), dy_l = Vec::load(dy_column_ + l * W);
    const Vec to_B = Vec::load(through_B_ + l * W);
    fma(to_B, Vec::load(dt_column_ + l * W), D * dy_l).store(du.data + l * du.stride + first);
    const Vec ddt = fma(to_B, u_l, Vec::load(through_A_ + l * W) * Vec::set(kLn2));
    const Vec ddelta = ddt * Vec::load(slope_ + l * c.width + first);
    ddelta.store(delta_ + l * c.width + first);
    dD = fma(dy_l, u_l, dD);
    dbias = dbias + ddelta;
  }
  dD.store(k.dD + first);
  dbias.store(k.dbias + first);
}

// The rows of the chunk: the gradients of the step-size inputs, of B and of C.
template <bool Above>
void InnerBackward<Above>::write_x_dbl(i64 batch, i64 g, i64 chunk, i64 block_group) {
  const i64 start = chunk * s_.chunk, steps = least(s_.chunk, s_.length - start);
  const float* rows = args_.dx_dbl + (block_group * s_.batch + batch) * s_.length * s_.row() + g * s_.section();
  const Rows to = in_time(s_, g, start, rows, s_.row());
  for (i64 l = 0; l < steps; ++l) {
    float* p = to.data + l * to.stride;
    for (i64 r = 0; r < s_.rank; ++r) p[r] = drank_[l * padded_rank_ + r];
    p += s_.rank;
    for (i64 n = 0; n < s_.states; ++n) {
      p[n] = sum(Vec::load(dB_ + (l * s_.states + n) * Vec::W));
      p[s_.states + n] = sum(Vec::load(dC_ + (l * s_.states + n) * Vec::W));
    }
  }
}

template <bool Above>
void inner_backward_tasks(const InnerBackwardArgs& args, i64 begin, i64 end) {
  InnerBackward<Above> scan(args);
  for (i64 i = begin; i < end; ++i) scan.run(i);
}

void inner_backward(const InnerBackwardArgs& args, i64 begin, i64 end) {
  const InnerSizes& s = args.sizes;
  if (all_shrink(args.in.A, s.all_channels() * s.states)) return inner_backward_tasks<false>(args, begin, end);
  inner_backward_tasks<true>(args, begin, end);
}

}  // namespace
