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
VMAMBA_INLINE void convolve(const Around& x, i64 columns, const float* taps, i64 tap_stride, Vec bias, From from,
                            To lanes, float* to, i64 stride) {
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

// Calls run(first column, constant number of columns): several at a time, whose exponentials do not wait for others.
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

// The channels of one image that a walk down its rows takes along.
struct Column {
  const DepthwiseArgs& a;
  i64 image, channel, count;

  Column(const DepthwiseArgs& a, i64 image, i64 index) : a(a), image(image), channel(index * a.block) {
    count = a.channels - channel < a.block ? a.channels - channel : a.block;
  }

  template <class T>
  T* row(T* x, i64 h) const {
    return x + (image * a.height + h) * a.columns * a.channels + channel;
  }
  // The rows around row h.
  Around around(const float* x, i64 h, const float* zeros) const {
    const auto line = [&](i64 at) { return at < 0 || at >= a.height ? Line{zeros, 0} : Line{row(x, at), a.channels}; };
    return {{line(h - 1), line(h), line(h + 1)}};
  }
  // Asks for row h, of which the positions lie too far apart for a processor to foresee.
  template <int Write>
  void prefetch(const float* x, i64 h) const {
    if (h >= a.height) return;
    const float* p = row(x, h);
    for (i64 j = 0; j < a.columns; ++j, p += a.channels)
      for (i64 c = 0; c < count; c += 16) __builtin_prefetch(p + c, Write, 3);
  }
};

void depthwise_forward(const DepthwiseArgs& a, i64 begin, i64 end) {
  const Zeros zeros(a.padded());
  const i64 all = a.padded();
  for (i64 task = begin; task < end; ++task) {
    const i64 first = task % a.parts() * a.rows, last = first + a.rows < a.height ? first + a.rows : a.height;
    for (i64 index = 0; index < a.blocks(); ++index) {
      const Column column(a, task / a.parts(), index);
      for (i64 h = first; h < last; ++h) {
        column.prefetch<0>(a.x, h + 2);
        column.prefetch<1>(a.y, h + 1);
        const Around x = column.around(a.x, h, zeros.data);
        float* y = column.row(a.y, h);
        by_vectors(column.count, [&](i64 c, auto lanes) {
          const float* taps = a.taps + column.channel + c;
          const Vec bias = Vec::load(taps + kDepthwiseTaps * all);
          convolve<false>(x + c, a.columns, taps, all, bias, lanes, lanes, y + c, a.channels);
          activate(y + c, a.channels, a.columns, lanes);
        });
      }
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
    const Column column(a, task / a.blocks(), task % a.blocks());
    for (i64 i = 0; i < kDepthwiseSums * width; ++i) sums[i] = 0.0f;
    for (i64 h = 0; h <= a.height; ++h) {
      column.prefetch<0>(a.x, h + 2);
      column.prefetch<0>(a.dy, h + 1);
      column.prefetch<1>(a.dx, h);
      by_vectors(column.count, [&](i64 c, auto lanes) { step(column, h, c, lanes); });
    }
    for (i64 t = 0; t < kDepthwiseSums; ++t)
      for (i64 c = 0; c < column.count; ++c)
        a.sums[(column.image * kDepthwiseSums + t) * a.channels + column.channel + c] = sums[t * width + c];
  }

  // Row h of q with its part of the sums, then row h - 1 of dx.
  template <class Lanes>
  VMAMBA_INLINE void step(const Column& column, i64 h, i64 c, Lanes lanes) {
    const i64 all = a.padded();
    const float* taps = a.taps + column.channel + c;
    if (h < a.height) {
      const Around x = column.around(a.x, h, zeros) + c;
      float* q = ring + h % 3 * row + c;
      convolve<false>(x, a.columns, taps, all, Vec::load(taps + kDepthwiseTaps * all), lanes, Whole{}, q, width);
      differentiate(q, width, Line{column.row(a.dy, h) + c, a.channels}, a.columns, lanes);
      add_sums(x, a.columns, q, width, sums + c, lanes);
    }
    if (h > 0) {
      const Around q{{q_line(h - 2) + c, q_line(h - 1) + c, q_line(h) + c}};
      convolve<true>(q, a.columns, taps, all, Vec::set(0.0f), Whole{}, lanes, column.row(a.dx, h - 1) + c, a.channels);
    }
  }
};

void depthwise_backward(const DepthwiseArgs& a, i64 begin, i64 end) {
  DepthwiseBackward walk{a};
  for (i64 task = begin; task < end; ++task) walk.run(task);
}

}  // namespace
