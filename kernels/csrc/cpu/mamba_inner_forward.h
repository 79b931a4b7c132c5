// The forward of mamba_inner: a task owns a block of channels of one image and all directions, which add to its rows in
// turn; the last direction gates what it adds to.
#pragma once

namespace {

template <bool Above>
class InnerForward {
 public:
  explicit InnerForward(const InnerForwardArgs& args)
      : args_(args),
        s_(args.sizes),
        scratch_(DirectionWeights::floats(s_) + s_.states * s_.block + 3 * s_.chunk * s_.block + 3 * s_.chunk * Vec::W +
                 8 * 16),
        weights_(s_, scratch_.take(DirectionWeights::floats(s_))),
        h_(scratch_.take(s_.states * s_.block)) {
    for (float** tile : {&delta_, &dt_, &e_}) *tile = scratch_.take(s_.chunk * s_.block);
    for (float** column : {&dt_column_, &dtu_column_, &y_column_}) *column = scratch_.take(s_.chunk * Vec::W);
  }

  void run(i64 batch, i64 block) {
    const i64 channel = block * s_.block, width = least(s_.block, s_.channels - channel);
    for (i64 g = 0; g < s_.directions; ++g) {
      weights_.load(s_, args_.in, g, channel, width);
      for (i64 i = 0; i < s_.states * width; ++i) h_[i] = 0.0f;
      for (i64 chunk = 0; chunk < s_.chunks(); ++chunk) {
        if (args_.states) keep(batch, g, chunk, channel, width);
        tile(batch, g, chunk, channel, width);
      }
    }
  }

 private:
  void keep(i64 batch, i64 g, i64 chunk, i64 channel, i64 width) {
    const i64 all = s_.all_channels();
    float* to = args_.states + (batch * s_.kept + chunk) * s_.states * all + g * s_.channels + channel;
    for (i64 n = 0; n < s_.states; ++n)
      for (i64 c = 0; c < width; c += Vec::W) Vec::load(h_ + n * width + c).store(to + n * all + c);
  }

  void tile(i64 batch, i64 g, i64 chunk, i64 channel, i64 width) {
    const i64 start = chunk * s_.chunk, steps = least(s_.chunk, s_.length - start), all = s_.all_channels();
    const i64 image = batch * s_.length;
    const Rows p = in_time(s_, g, start, args_.in.x_dbl + image * s_.row() + g * s_.section(), s_.row());
    const Rows u = in_time(s_, g, start, args_.in.u + image * all + g * s_.channels + channel, all);
    const Rows sum = in_time(s_, g, start, args_.scanned + image * s_.channels + channel, s_.channels);
    const Rows y = in_time(s_, g, start, args_.y + image * s_.channels + channel, s_.channels);
    const TokenRows& gate = args_.in.z;
    const Rows z = in_time(s_, g, start, gate.data + batch * gate.batch_stride + channel, gate.stride);
    const i64 ahead = least(s_.chunk, s_.length - start - steps);
    const auto soon = [&](const Rows& rows) {
      prefetch_rows({rows.data + steps * rows.stride, rows.stride}, ahead, width);
    };
    soon(u);
    if (g) soon(sum);
    if (g + 1 == s_.directions) soon(z);
    project_steps(s_, weights_.dt, width, p, steps, delta_);
    make_dt<true>({delta_, width}, weights_.bias, width, steps, dt_, e_);
    for (i64 c = 0; c < width; c += Vec::W) {
      const Vec D = Vec::load(weights_.D + c);
      for (i64 l = 0; l < steps; ++l) {
        const Vec dt_l = Vec::load(dt_ + l * width + c), u_l = Vec::load(u.data + l * u.stride + c);
        dt_l.store(dt_column_ + l * Vec::W);
        (dt_l * u_l).store(dtu_column_ + l * Vec::W);
        const Vec before = g ? Vec::load(sum.data + l * sum.stride + c) : Vec::set(0.0f);
        fma(D, u_l, before).store(y_column_ + l * Vec::W);
      }
      const float *B = p.data + s_.rank, *C = B + s_.states;
      by_states(s_.states, [&](auto several, i64 n) {
        const i64 at = n * width + c;
        forward_states<decltype(several)::value, Above>(dt_column_, dtu_column_, y_column_, weights_.A2 + at, width,
                                                        B + n, C + n, p.stride, h_ + at, steps);
      });
      for (i64 l = 0; l < steps; ++l) {
        const Vec y_l = Vec::load(y_column_ + l * Vec::W);
        y_l.store(sum.data + l * sum.stride + c);
        if (g + 1 < s_.directions) continue;
        const Vec z_l = Vec::load(z.data + l * z.stride + c);
        (y_l * Vec::set(s_.scale) * z_l * logistic(z_l)).store(y.data + l * y.stride + c);
      }
    }
  }

  const InnerForwardArgs& args_;
  const InnerSizes& s_;
  Scratch scratch_;
  DirectionWeights weights_;
  float* h_;                                     // [N][width]
  float *delta_, *dt_, *e_;                      // [time][width]
  float *dt_column_, *dtu_column_, *y_column_;   // [time] vectors
};

template <bool Above>
void inner_forward_tasks(const InnerForwardArgs& args, i64 begin, i64 end) {
  InnerForward<Above> scan(args);
  const i64 blocks = args.sizes.blocks();
  for (i64 i = begin; i < end; ++i) scan.run(i / blocks, i % blocks);
}

void inner_forward(const InnerForwardArgs& args, i64 begin, i64 end) {
  const InnerSizes& s = args.sizes;
  if (all_shrink(args.in.A, s.all_channels() * s.states)) return inner_forward_tasks<false>(args, begin, end);
  inner_forward_tasks<true>(args, begin, end);
}

}  // namespace
