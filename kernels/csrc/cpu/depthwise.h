// silu(p), p = bias + the depthwise 3x3 convolution of x, zeros around x; and its gradient.
// A vector of channels walks along a row: each column of three values is read once, for the three outputs around it.
#pragma once

namespace {

using namespace vmamba;

// One channel's place in a row of positions: position j is at data + j * stride.
struct Line {
  const float* data;
  i64 stride;

  Line operator+(i64 channel) const { return {data + channel, stride}; }
};

// The rows above, at and below h; a stride of 0 makes one vector of zeros a row of them.
struct Around {
  Line lines[3];

  Around operator+(i64 channel) const { return {{lines[0] + channel, lines[1] + channel, lines[2] + channel}}; }
};

// to[j] = bias + sum over rows i and columns k of lines[i][j + k - 1] * taps[3 i + k], or of the taps in reverse.
// The sum of a column has an addition of its own: only that one waits for the column before.
template <bool Reverse, class From, class To>
VMAMBA_INLINE void convolve(const Around& x, i64 columns, const float* taps, i64 tap_stride, Vec bias, From from, To lanes,
                            float* to, i64 stride) {
  Vec w[kDepthwiseTaps];
  for (int t = 0; t < kDepthwiseTaps; ++t) w[t] = Vec::load(taps + (Reverse ? kDepthwiseTaps - 1 - t : t) * tap_stride);
  Vec now = bias, next = bias;
  for (i64 j = 0; j < columns; ++j) {
    Vec v[3];
    for (int i = 0; i < 3; ++i) v[i] = from.load(x.lines[i].data + j * x.lines[i].stride);
    if (j > 0) lanes.store(now + fma(v[2], w[8], fma(v[1], w[5], v[0] * w[2])), to + (j - 1) * stride);
    now = next + fma(v[2], w[7], fma(v[1], w[4], v[0] * w[1]));
    next = fma(v[2], w[6], fma(v[1], w[3], fma(v[0], w[0], bias)));
  }
  lanes.store(now, to + (columns - 1) * stride);
}

// Calls run(first column, constant number of columns): several at a time, whose exponentials do not wait for each other.
template <class Run>
VMAMBA_INLINE void by_columns(i64 columns, const Run& run) {
  i64 j = 0;
  for (; j + 4 <= columns; j += 4) run(j, std::integral_constant<int, 4>{});
  for (; j < columns; ++j) run(j, std::integral_constant<int, 1>{});
}

// 1 + exp(-p).
template <int M>
VMAMBA_INLINE void inverse_sigmoid(const Vec (&p)[M], Vec (&to)[M]) {
  for (int m = 0; m < M; ++m) to[m] = p[m] * Vec::set(-1.442695041f);
  exp2<true>(to);
  for (int m = 0; m < M; ++m) to[m] = to[m] + Vec::set(1.0f);
}

// p becomes silu(p).
template <class Lanes>
VMAMBA_INLINE void activate(float* p, i64 stride, i64 columns, Lanes lanes) {
  by_columns(columns, [&](i64 j, auto several) {
    constexpr int M = decltype(several)::value;
    Vec v[M], e[M];
    for (int m = 0; m < M; ++m) v[m] = lanes.load(p + (j + m) * stride);
    inverse_sigmoid(v, e);
    for (int m = 0; m < M; ++m) lanes.store(v[m] / e[m], p + (j + m) * stride);
  });
}

// p becomes the gradient of p, given that of silu(p).
template <class Lanes>
VMAMBA_INLINE void differentiate(float* p, i64 stride, Line dy, i64 columns, Lanes lanes) {
  by_columns(columns, [&](i64 j, auto several) {
    constexpr int M = decltype(several)::value;
    const Vec one = Vec::set(1.0f);
    Vec v[M], e[M];
    for (int m = 0; m < M; ++m) v[m] = Vec::load(p + (j + m) * stride);
    inverse_sigmoid(v, e);
    for (int m = 0; m < M; ++m) {
      const Vec s = one / e[m];
      (lanes.load(dy.data + (j + m) * dy.stride) * s * fma(v[m], one - s, one)).store(p + (j + m) * stride);
    }
  });
}

// sums[t] += sum over a row of q times what tap t read, sums[9] += sum of q. After the row q has one column of zeros.
template <class Lanes>
VMAMBA_INLINE void add_sums(const Around& x, i64 columns, const float* q, i64 stride, float* sums, Lanes lanes) {
  Vec total[kDepthwiseSums];
  for (Vec& t : total) t = Vec::set(0.0f);
  Vec before = Vec::set(0.0f), now = Vec::load(q);
  for (i64 j = 0; j < columns; ++j) {
    const Vec next = Vec::load(q + (j + 1) * stride);
    for (int i = 0; i < 3; ++i) {
      const Vec v = lanes.load(x.lines[i].data + j * x.lines[i].stride);
      total[3 * i + 2] = fma(before, v, total[3 * i + 2]);
      total[3 * i + 1] = fma(now, v, total[3 * i + 1]);
      total[3 * i] = fma(next, v, total[3 * i]);
    }
    total[kDepthwiseTaps] = total[kDepthwiseTaps] + now;
    before = now;
    now = next;
  }
  for (int t = 0; t < kDepthwiseSums; ++t) (Vec::load(sums + t * stride) + total[t]).store(sums + t * stride);
}

// Floats that start as zeros.
struct Zeros {
  float* const data;
  explicit Zeros(i64 count) : data(new float[count]()) {}
  ~Zeros() { delete[] data; }
  Zeros(const Zeros&) = delete;
  Zeros& operator=(const Zeros&) = delete;
};

// The rows around row h of image b, all channels.
inline Around around(const DepthwiseArgs& a, const float* x, i64 b, i64 h, const float* zeros) {
  const auto line = [&](i64 row) {
    return row < 0 || row >= a.height ? Line{zeros, 0} : Line{x + (b * a.height + row) * a.columns * a.channels, a.channels};
  };
  return {{line(h - 1), line(h), line(h + 1)}};
}

void depthwise_forward(const DepthwiseArgs& a, i64 begin, i64 end) {
  const Zeros zeros(a.padded());
  for (i64 task = begin; task < end; ++task) {
    const i64 b = task / a.parts(), first = task % a.parts() * a.rows;
    for (i64 h = first; h < first + a.rows && h < a.height; ++h) {
      const Around x = around(a, a.x, b, h, zeros.data);
      float* y = a.y + (b * a.height + h) * a.columns * a.channels;
      by_vectors(a.channels, [&](i64 c, auto lanes) {
        const float* taps = a.taps + c;
        const Vec bias = Vec::load(taps + kDepthwiseTaps * a.padded());
        convolve<false>(x + c, a.columns, taps, a.padded(), bias, lanes, lanes, y + c, a.channels);
        activate(y + c, a.channels, a.columns, lanes);
      });
    }
  }
}

// A task walks down the rows of one image. Three rows of q, the gradient of p, are kept: those that a row of dx reads.
struct DepthwiseBackward {
  const DepthwiseArgs& a;
  const i64 width = a.block;
  const i64 row = (a.columns + 1) * width;
  Zeros scratch{3 * row + kDepthwiseSums * width + a.padded()};
  float* ring = scratch.data;
  float* sums = ring + 3 * row;
  float* zeros = sums + kDepthwiseSums * width;

  Line q_line(i64 h) const { return h < 0 || h >= a.height ? Line{zeros, 0} : Line{ring + h % 3 * row, width}; }

  void run(i64 task) {
    const i64 b = task / a.blocks(), channel = task % a.blocks() * a.block;
    const i64 count = a.channels - channel < a.block ? a.channels - channel : a.block;
    for (i64 i = 0; i < kDepthwiseSums * width; ++i) sums[i] = 0.0f;
    for (i64 h = 0; h <= a.height; ++h) by_vectors(count, [&](i64 c, auto lanes) { step(b, h, channel, c, lanes); });
    for (i64 t = 0; t < kDepthwiseSums; ++t)
      for (i64 c = 0; c < count; ++c)
        a.sums[(b * kDepthwiseSums + t) * a.channels + channel + c] = sums[t * width + c];
  }

  // Row h of q with its part of the sums, then row h - 1 of dx.
  template <class Lanes>
  VMAMBA_INLINE void step(i64 b, i64 h, i64 channel, i64 c, Lanes lanes) {
    const i64 all = a.padded();
    const float* taps = a.taps + channel + c;
    if (h < a.height) {
      const Around x = around(a, a.x, b, h, zeros) + (channel + c);
      const Line dy{a.dy + (b * a.height + h) * a.columns * a.channels + channel + c, a.channels};
      float* q = ring + h % 3 * row + c;
      convolve<false>(x, a.columns, taps, all, Vec::load(taps + kDepthwiseTaps * all), lanes, Whole{}, q, width);
      differentiate(q, width, dy, a.columns, lanes);
      add_sums(x, a.columns, q, width, sums + c, lanes);
    }
    if (h > 0) {
      const Around q{{q_line(h - 2) + c, q_line(h - 1) + c, q_line(h) + c}};
      float* dx = a.dx + (b * a.height + h - 1) * a.columns * a.channels + channel + c;
      convolve<true>(q, a.columns, taps, all, Vec::set(0.0f), Whole{}, lanes, dx, a.channels);
    }
  }
};

void depthwise_backward(const DepthwiseArgs& a, i64 begin, i64 end) {
  DepthwiseBackward walk{a};
  for (i64 task = begin; task < end; ++task) walk.run(task);
}

}  // namespace
