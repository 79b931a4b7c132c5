// The backward of ss2d: a task owns some images and some blocks of channels, so that every sum has one owner.
// For each direction tiles are walked from the last to the first, each started from its stored state.
#pragma once

namespace {

// The part [begin, end) of `count` things that falls to group `index` of `groups`.
struct Share {
  i64 begin, end;
  Share(i64 count, i64 groups, i64 index) : begin(count * index / groups), end(count * (index + 1) / groups) {}
};

template <bool Above>
class Ss2dBackward {
 public:
  explicit Ss2dBackward(const Ss2dBackwardArgs& args);
  void run(i64 task);

 private:
  i64 image_floats(const Sequence& t) const {
    const bool whole = s_.channels % Vec::W == 0 && s_.block % Vec::W == 0;
    const bool direct = t.type == Type::f32 && t.channel_stride == 1 && whole;
    return direct ? 0 : Scratch::rounded(s_.length * widest_);
  }
  void load_weights(const Block& block, i64 k);
  void load_state(const Block& block, i64 k, i64 chunk);
  void tile(const Block& block, i64 k, i64 chunk, Rows x, Rows dy, Rows dx);
  void one_state(i64 width, i64 steps, Rows x, Rows dy);
  void many_states(i64 width, i64 steps, Rows x, Rows dy);
  void finish(i64 width, i64 steps, Rows x, Rows dy);
  void add_to_x_dbl(const Block& block, i64 k, i64 chunk, bool first, float* to);
  void add_weights(const Block& block, i64 k, i64 batch_group, bool first);
  const i64* positions(i64 k, i64 chunk) const { return args_.in.maps + k * s_.length + chunk * s_.chunk; }
  i64 steps_of(i64 chunk) const { return least(s_.chunk, s_.length - chunk * s_.chunk); }

  const Ss2dBackwardArgs& args_;
  const Ss2dSizes& s_;
  const i64 widest_, padded_rank_, block_;
  Scratch scratch_;
  Weights weights_;
  float *x_, *dy_, *dx_;                    // whole images of a block
  float *p_, *dp_, *drank_, *rank_weight_;  // [time][R + 2N], the same, [time][padded R], [channel][padded R]
  float *delta_, *dt_, *dtx_, *slope_, *through_B_, *through_A_, *x_tile_, *dy_tile_, *dx_tile_;  // [time][width]
  float *B_, *C_;                           // [time], of one state
  float *decay_, *before_, *dB_, *dC_;      // [time][states walked together] vectors; of one state [time][width]
  float *h_, *carry_, *dA_;                 // [N][width]
  float *D_, *dD_, *dbias_;                 // [width]
  float* dW_;                               // [R][width]
};

template <bool Above>
Ss2dBackward<Above>::Ss2dBackward(const Ss2dBackwardArgs& args)
    : args_(args),
      s_(args.sizes),
      widest_(widest(s_)),
      padded_rank_(padded(s_.rank)),
      block_(s_.states == 1 ? Scratch::rounded((s_.chunk + 1) * widest_) : s_.chunk * kStates * Vec::W),
      scratch_(Weights::floats(s_) + image_floats(args.in.x) + image_floats(args.dout) + image_floats(args.dx) +
               2 * Scratch::rounded(s_.chunk * s_.section()) + Scratch::rounded(s_.chunk * padded_rank_) +
               Scratch::rounded(widest_ * padded_rank_) + 9 * Scratch::rounded(s_.chunk * widest_) +
               2 * Scratch::rounded(s_.chunk) + 4 * block_ + 3 * Scratch::rounded(s_.states * widest_) +
               3 * Scratch::rounded(widest_) + Scratch::rounded(s_.rank * widest_)),
      weights_(s_, scratch_),
      x_(scratch_.take(image_floats(args.in.x))),
      dy_(scratch_.take(image_floats(args.dout))),
      dx_(scratch_.take(image_floats(args.dx))),
      drank_(scratch_.take(s_.chunk * padded_rank_)),
      rank_weight_(scratch_.take(widest_ * padded_rank_)),
      dW_(scratch_.take(s_.rank * widest_)) {
  for (float** tile : {&p_, &dp_}) *tile = scratch_.take(s_.chunk * s_.section());
  for (float** tile : {&delta_, &dt_, &dtx_, &slope_, &through_B_, &through_A_, &x_tile_, &dy_tile_, &dx_tile_})
    *tile = scratch_.take(s_.chunk * widest_);
  for (float** projection : {&B_, &C_}) *projection = scratch_.take(s_.chunk);
  for (float** tape : {&decay_, &before_, &dB_, &dC_}) *tape = scratch_.take(block_);
  for (float** weight : {&h_, &carry_, &dA_}) *weight = scratch_.take(s_.states * widest_);
  for (float** channel : {&D_, &dD_, &dbias_}) *channel = scratch_.take(widest_);
}

template <bool Above>
void Ss2dBackward<Above>::run(i64 task) {
  const i64 batch_group = task / s_.block_groups, block_group = task % s_.block_groups;
  const Share images(s_.batch, s_.batch_groups, batch_group), blocks(s_.blocks(), s_.block_groups, block_group);
  for (i64 batch = images.begin; batch < images.end; ++batch) {
    float* dx_dbl = args_.dx_dbl + (block_group * s_.batch + batch) * s_.length * s_.row();
    for (i64 index = blocks.begin; index < blocks.end; ++index) {
      const Block block(s_, batch, index);
      const Rows x = read(args_.in.x, block.image(s_), 1, x_), dy = read(args_.dout, block.image(s_), 1, dy_);
      const Rows dx = write(args_.dx, block.image(s_), dx_);
      for (i64 k = 0; k < s_.directions; ++k) {
        load_weights(block, k);
        for (i64 chunk = s_.chunks() - 1; chunk >= 0; --chunk) {
          load_state(block, k, chunk);
          tile(block, k, chunk, x, dy, dx);
          add_to_x_dbl(block, k, chunk, index == blocks.begin, dx_dbl);
        }
        add_weights(block, k, batch_group, batch == images.begin);
      }
      flush(args_.dx, block.image(s_), dx);
    }
  }
}

template <bool Above>
void Ss2dBackward<Above>::load_weights(const Block& block, i64 k) {
  weights_.load(s_, args_.in, block, k);
  skip_weight(s_, args_.in, block, k, D_);
  const float* from = args_.in.dt_weight + (k * s_.channels + block.channel) * s_.rank;
  for (i64 c = 0; c < block.count; ++c)
    for (i64 r = 0; r < padded_rank_; ++r)
      rank_weight_[c * padded_rank_ + r] = r < s_.rank ? from[c * s_.rank + r] : 0.0f;
  for (i64 i = 0; i < s_.states * block.width; ++i) carry_[i] = dA_[i] = 0.0f;
  for (i64 i = 0; i < s_.rank * block.width; ++i) dW_[i] = 0.0f;
  for (i64 c = 0; c < block.width; ++c) dbias_[c] = dD_[c] = 0.0f;
}

template <bool Above>
void Ss2dBackward<Above>::load_state(const Block& block, i64 k, i64 chunk) {
  for (i64 i = 0; i < s_.states * block.width; ++i) h_[i] = 0.0f;
  if (chunk == 0) return;
  const i64 all = s_.directions * s_.channels;
  const i64 index = block.batch * (s_.chunks() - 1) + chunk - 1;
  const float* kept = args_.states + index * s_.states * all + k * s_.channels + block.channel;
  for (i64 n = 0; n < s_.states; ++n)
    for (i64 c = 0; c < block.count; ++c) h_[n * block.width + c] = kept[n * all + c];
}

template <bool Above>
void Ss2dBackward<Above>::tile(const Block& block, i64 k, i64 chunk, Rows x, Rows dy, Rows dx) {
  const i64* at = positions(k, chunk);
  const i64 steps = steps_of(chunk), width = block.width;
  if (chunk > 0)
    for (const Rows image : {x, dy, dx}) prefetch_steps(image.data, image.stride, at - s_.chunk, s_.chunk, width);
  gather(s_, args_.in.x_dbl, block.batch, k, at, steps, p_);
  project_tile(s_, weights_, width, p_, steps, delta_);
  make_dt_and_slope<true>({delta_, width}, weights_.bias, width, steps, dt_, slope_);
  const Rows x_steps = read_steps(x, at, steps, width, x_tile_), dy_steps = read_steps(dy, at, steps, width, dy_tile_);
  if (s_.states == 1)
    one_state(width, steps, x_steps, dy_steps);
  else
    many_states(width, steps, x_steps, dy_steps);
  add_steps(dx_tile_, at, steps, width, k == 0, dx);
  add_weight_gradient(s_.rank, p_, s_.section(), delta_, width, steps, dW_);
}

// From here on delta_ holds the gradient of delta.
template <bool Above>
void Ss2dBackward<Above>::one_state(i64 width, i64 steps, Rows x, Rows dy) {
  const i64 section = s_.section();
  for (i64 l = 0; l < steps; ++l) {
    B_[l] = p_[l * section + s_.rank];
    C_[l] = p_[l * section + s_.rank + 1];
  }
  for (i64 i = 0; i < steps * Vec::W; ++i) dB_[i] = dC_[i] = 0.0f;
  const OneState state{dt_, slope_, decay_, before_, weights_.A2, D_, B_, C_, carry_, dA_, dD_, dbias_, dB_, dC_};
  by_columns(width, [&](auto vectors, i64 c) {
    constexpr int M = decltype(vectors)::value;
    recompute_one_state<M, Above>({x.data + c, x.stride}, dt_ + c, width, weights_.A2 + c, B_, h_ + c, decay_ + c,
                                  before_ + c, steps);
    backward_one_state<M, true>(state, c, width, x, dy, {dx_tile_, width}, {delta_, width}, steps);
  });
  for (i64 l = 0; l < steps; ++l) {
    dp_[l * section + s_.rank] = sum(Vec::load(dB_ + l * Vec::W));
    dp_[l * section + s_.rank + 1] = sum(Vec::load(dC_ + l * Vec::W));
  }
}

template <bool Above>
void Ss2dBackward<Above>::many_states(i64 width, i64 steps, Rows x, Rows dy) {
  const i64 section = s_.section();
  for (i64 l = 0; l < steps; ++l)
    for (i64 c = 0; c < width; c += Vec::W) {
      (Vec::load(dt_ + l * width + c) * Vec::load(x.data + l * x.stride + c)).store(dtx_ + l * width + c);
      Vec::set(0.0f).store(through_B_ + l * width + c);
      Vec::set(0.0f).store(through_A_ + l * width + c);
    }
  by_states(s_.states, [&](auto several, i64 n) {
    constexpr int NB = decltype(several)::value;
    for (i64 i = 0; i < steps * NB * Vec::W; ++i) dB_[i] = dC_[i] = 0.0f;
    const float *B = p_ + s_.rank + n, *C = B + s_.states;
    for (i64 c = 0; c < width; c += Vec::W) {
      const i64 weight = n * width + c;
      backward_states<NB, Above>(dt_ + c, dtx_ + c, {dy.data + c, dy.stride}, weights_.A2 + weight, width, B, C,
                                 section, h_ + weight, carry_ + weight, decay_, before_, through_B_ + c, through_A_ + c,
                                 width, dB_, dC_, dA_ + weight, steps);
    }
    for (i64 l = 0; l < steps; ++l)
      for (int i = 0; i < NB; ++i) {
        float* to = dp_ + l * section + s_.rank + n + i;
        to[0] = sum(Vec::load(dB_ + (l * NB + i) * Vec::W));
        to[s_.states] = sum(Vec::load(dC_ + (l * NB + i) * Vec::W));
      }
  });
  finish(width, steps, x, dy);
}

// dx, the gradient of delta and the sums over time, once the states of a tile have been walked.
template <bool Above>
void Ss2dBackward<Above>::finish(i64 width, i64 steps, Rows x, Rows dy) {
  for (i64 c = 0; c < width; c += Vec::W) {
    const Vec D = Vec::load(D_ + c);
    Vec dD = Vec::load(dD_ + c), dbias = Vec::load(dbias_ + c);
    for (i64 l = 0; l < steps; ++l) {
      const i64 place = l * width + c;
      const Vec x_l = Vec::load(x.data + l * x.stride + c), dy_l = Vec::load(dy.data + l * dy.stride + c);
      const Vec through_B = Vec::load(through_B_ + place);
      fma(through_B, Vec::load(dt_ + place), D * dy_l).store(dx_tile_ + place);
      const Vec ddt = fma(through_B, x_l, Vec::load(through_A_ + place) * Vec::set(kLn2));
      const Vec ddelta = ddt * Vec::load(slope_ + place);
      ddelta.store(delta_ + place);
      dD = fma(dy_l, x_l, dD);
      dbias = dbias + ddelta;
    }
    dD.store(dD_ + c);
    dbias.store(dbias_ + c);
  }
}

// The gradient of the gathered steps goes to their rows: stored by the first block of a task, added by the others.
template <bool Above>
void Ss2dBackward<Above>::add_to_x_dbl(const Block& block, i64 k, i64 chunk, bool first, float* to) {
  const i64* at = positions(k, chunk);
  const i64 steps = steps_of(chunk), section = s_.section(), row = s_.row();
  rank_gradient(delta_, block.width, block.count, steps, rank_weight_, padded_rank_, drank_);
  for (i64 l = 0; l < steps; ++l) {
    float* dp = dp_ + l * section;
    for (i64 r = 0; r < s_.rank; ++r) dp[r] = drank_[l * padded_rank_ + r];
    float* p = to + at[l] * row + k * section;
    if (first)
      for (i64 j = 0; j < section; ++j) p[j] = dp[j];
    else
      for (i64 j = 0; j < section; ++j) p[j] += dp[j];
  }
}

// The sums of one image and direction go to those of the batch group: stored by its first image, added by the others.
template <bool Above>
void Ss2dBackward<Above>::add_weights(const Block& block, i64 k, i64 batch_group, bool first) {
  const i64 channels = s_.channels;
  const auto add = [&](float* to, i64 rows, const float* from) {
    for (i64 r = 0; r < rows; ++r) {
      float* row = to + r * channels + block.channel;
      for (i64 c = 0; c < block.count; ++c) row[c] = from[r * block.width + c] + (first ? 0.0f : row[c]);
    }
  };
  const i64 slot = batch_group * s_.directions + k;
  add(args_.d_dt_weight + slot * s_.rank * channels, s_.rank, dW_);
  add(args_.dA + slot * s_.states * channels, s_.states, dA_);
  add(args_.d_delta_bias + slot * channels, 1, dbias_);
  if (k == 0) add(args_.dD + batch_group * channels, 1, dD_);
}

template <bool Above>
void ss2d_backward_tasks(const Ss2dBackwardArgs& args, i64 begin, i64 end) {
  Ss2dBackward<Above> scan(args);
  for (i64 i = begin; i < end; ++i) scan.run(i);
}

void ss2d_backward(const Ss2dBackwardArgs& args, i64 begin, i64 end) {
  const Ss2dSizes& s = args.sizes;
  if (all_shrink(args.in.A, s.directions * s.channels * s.states)) return ss2d_backward_tasks<false>(args, begin, end);
  ss2d_backward_tasks<true>(args, begin, end);
}

}  // namespace
