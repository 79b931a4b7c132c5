// The forward of ss2d: a task owns a block of channels of one image and all directions, which add to its y in turn.
// A direction is only the list of rows that its steps read and write; on a tile of them runs the selective scan.
#pragma once

namespace {

template <bool Above>
class Ss2dForward {
 public:
  explicit Ss2dForward(const Ss2dForwardArgs& args)
      : args_(args),
        s_(args.sizes),
        scratch_(Weights::floats(s_) + image_floats(args.in.x) + image_floats(args.out) +
                 Scratch::rounded(s_.chunk * s_.section()) + 5 * Scratch::rounded(s_.chunk * widest(s_)) +
                 Scratch::rounded(s_.states * widest(s_)) + Scratch::rounded(widest(s_)) +
                 3 * Scratch::rounded(s_.chunk * Vec::W)),
        weights_(s_, scratch_),
        x_(scratch_.take(image_floats(args.in.x))),
        y_(scratch_.take(image_floats(args.out))),
        p_(scratch_.take(s_.chunk * s_.section())),
        h_(scratch_.take(s_.states * widest(s_))),
        D_(scratch_.take(widest(s_))) {
    for (float** tile : {&x_tile_, &y_tile_, &delta_, &dt_, &e_}) *tile = scratch_.take(s_.chunk * widest(s_));
    for (float** column : {&dt_column_, &dtx_column_, &y_column_}) *column = scratch_.take(s_.chunk * Vec::W);
  }

  void run(const Block& block);

 private:
  // Room for a whole image of a block, where some block of the tensor cannot be used in place.
  i64 image_floats(const Sequence& t) const {
    const bool whole = s_.channels % Vec::W == 0 && s_.block % Vec::W == 0;
    const bool direct = t.type == Type::f32 && t.channel_stride == 1 && whole;
    return direct ? 0 : Scratch::rounded(s_.length * widest(s_));
  }
  void keep_state(const Block& block, i64 k, i64 chunk);
  void tile(const Block& block, i64 k, const i64* at, i64 steps, Rows x, Rows y);
  void one_state(i64 width, i64 steps, Rows x);
  void many_states(i64 width, i64 steps, Rows x);

  const Ss2dForwardArgs& args_;
  const Ss2dSizes& s_;
  Scratch scratch_;
  Weights weights_;
  float *x_, *y_;                                   // whole images of a block
  float *p_, *h_, *D_;                              // [time][R + 2N], [N][width], [width]
  float *x_tile_, *y_tile_, *delta_, *dt_, *e_;     // [time][width]
  float *dt_column_, *dtx_column_, *y_column_;      // [time] vectors
};

template <bool Above>
void Ss2dForward<Above>::run(const Block& block) {
  const Rows x = read(args_.in.x, block.image(s_), 1, x_);
  const Rows y = write(args_.out, block.image(s_), y_);
  for (i64 k = 0; k < s_.directions; ++k) {
    weights_.load(s_, args_.in, block, k);
    skip_weight(s_, args_.in, block, k, D_);
    for (i64 i = 0; i < s_.states * block.width; ++i) h_[i] = 0.0f;
    for (i64 chunk = 0; chunk < s_.chunks(); ++chunk) {
      if (chunk && args_.states) keep_state(block, k, chunk);
      const i64 start = chunk * s_.chunk, stop = least(start + s_.chunk, s_.length);
      const i64* at = args_.in.maps + k * s_.length;
      const i64 ahead = least(s_.chunk, s_.length - stop);
      prefetch_steps(x.data, x.stride, at + stop, ahead, block.width);
      prefetch_steps(y.data, y.stride, at + stop, ahead, block.width);
      tile(block, k, at + start, stop - start, x, y);
    }
  }
  flush(args_.out, block.image(s_), y);
}

template <bool Above>
void Ss2dForward<Above>::keep_state(const Block& block, i64 k, i64 chunk) {
  const i64 all = s_.directions * s_.channels;
  const i64 index = block.batch * (s_.chunks() - 1) + chunk - 1;
  float* kept = args_.states + index * s_.states * all + k * s_.channels + block.channel;
  for (i64 n = 0; n < s_.states; ++n)
    for (i64 c = 0; c < block.count; ++c) kept[n * all + c] = h_[n * block.width + c];
}

template <bool Above>
void Ss2dForward<Above>::tile(const Block& block, i64 k, const i64* at, i64 steps, Rows x, Rows y) {
  const i64 width = block.width;
  gather(s_, args_.in.x_dbl, block.batch, k, at, steps, p_);
  project_tile(s_, weights_, width, p_, steps, delta_);
  const Rows x_steps = read_steps(x, at, steps, width, x_tile_);
  if (s_.states == 1)
    one_state(width, steps, x_steps);
  else
    many_states(width, steps, x_steps);
  add_steps(y_tile_, at, steps, width, k == 0, y);
}

template <bool Above>
void Ss2dForward<Above>::one_state(i64 width, i64 steps, Rows x) {
  const float *B = p_ + s_.rank, *C = B + 1;
  const i64 section = s_.section();
  make_dt<true>({delta_, width}, weights_.bias, width, steps, dt_, e_);
  by_columns(width, [&](auto vectors, i64 c) {
    forward_one_state<decltype(vectors)::value, Above>({x.data + c, x.stride}, dt_ + c, width, {y_tile_ + c, width},
                                                       weights_.A2 + c, D_ + c, B, section, C, section, h_ + c, steps);
  });
}

template <bool Above>
void Ss2dForward<Above>::many_states(i64 width, i64 steps, Rows x) {
  const float *B = p_ + s_.rank, *C = B + s_.states;
  make_dt<true>({delta_, width}, weights_.bias, width, steps, dt_, e_);
  for (i64 c = 0; c < width; c += Vec::W) {
    start_column({x.data + c, x.stride}, dt_ + c, width, Vec::load(D_ + c), steps, dt_column_, dtx_column_, y_column_);
    by_states(s_.states, [&](auto several, i64 n) {
      forward_states<decltype(several)::value, Above>(dt_column_, dtx_column_, y_column_, weights_.A2 + n * width + c,
                                                      width, B + n, C + n, s_.section(), h_ + n * width + c, steps);
    });
    for (i64 l = 0; l < steps; ++l) Vec::load(y_column_ + l * Vec::W).store(y_tile_ + l * width + c);
  }
}

template <bool Above>
void ss2d_forward_tasks(const Ss2dForwardArgs& args, i64 begin, i64 end) {
  Ss2dForward<Above> scan(args);
  const i64 blocks = args.sizes.blocks();
  for (i64 i = begin; i < end; ++i) scan.run(Block(args.sizes, i / blocks, i % blocks));
}

void ss2d_forward(const Ss2dForwardArgs& args, i64 begin, i64 end) {
  const Ss2dSizes& s = args.sizes;
  if (all_shrink(args.in.A, s.directions * s.channels * s.states)) return ss2d_forward_tasks<false>(args, begin, end);
  ss2d_forward_tasks<true>(args, begin, end);
}

}  // namespace
