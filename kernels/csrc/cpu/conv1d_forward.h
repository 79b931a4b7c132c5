// The causal convolution, forward: tiles of time by blocks of channels, every group from the same rows of x.
#pragma once

namespace {

template <int kTaps, bool kSilu>
void convolve_row(const float* const* rows, const float* w, i64 width, i64 taps, float* out) {
  over_channels(width, [&](i64 c, auto vectors) __attribute__((always_inline)) {
    constexpr int kVectors = decltype(vectors)::value;
    Vec p[kVectors], e[kVectors];
    sum_taps<kTaps>(rows, w, width, taps, c, p);
    if constexpr (kSilu) {
      negative_exponential(p, e);
      for (int m = 0; m < kVectors; ++m) p[m] = p[m] / (e[m] + Vec::set(1.0f));
    }
    for (int m = 0; m < kVectors; ++m) p[m].store(out + c + m * Vec::W);
  });
}

template <int kTaps, bool kSilu>
void conv_forward(const ConvForwardArgs& a, i64 begin, i64 end) {
  const ConvSizes& z = a.sizes;
  const i64 halo = z.taps - 1, widest = padded(least(z.block, z.channels));
  const i64 weights = (z.taps + 1) * widest;
  Scratch scratch(Scratch::rounded(z.groups * weights) + 2 * Scratch::rounded((z.tile + 2 * halo) * widest) +
                  Scratch::rounded(widest));
  float* w = scratch.take(z.groups * weights);
  float* x_room = scratch.take((z.tile + 2 * halo) * widest);
  float* out_room = scratch.take((z.tile + 2 * halo) * widest);
  float* zeros = scratch.take(widest);
  for (i64 c = 0; c < widest; ++c) zeros[c] = 0.0f;
  const float* x_rows[kConvTile + kMostTaps];
  i64 loaded = -1;
  // Blocks of channels outermost, so that weights are loaded once for many tiles; of a short call there is one block.
  for (i64 task = begin; task < end; ++task) {
    const i64 block = task / (z.batch * z.tiles()), place = task % (z.batch * z.tiles());
    const i64 start = place % z.tiles() * z.tile, channel = block * z.block;
    const i64 count = least(z.block, z.channels - channel);
    const Tile t{place / z.tiles(), channel, count, padded(count), start, least(z.tile, z.length - start)};
    if (block != loaded)
      for (i64 g = 0; g < z.groups; ++g) load_taps(z, a.in, g, t, w + g * weights);
    loaded = block;
    RowsAround x{};
    for (i64 g = 0; g < z.groups; ++g) {
      if (g == 0 || !z.shared)
        x = around(z.shared ? a.in.x : of_group(a.in.x, g, z.channels), t, halo, halo, z.length, x_room, zeros);
      const Sequence out = output_of(z, a.out, g);
      const Rows rows = write(out, t, out_room);
      const i64 first = z.reversed(g) ? t.start + t.steps - 1 : t.start, step = z.reversed(g) ? -1 : 1;
      for (i64 k = 0; k < t.steps + halo; ++k) x_rows[k] = x.at(first + step * (k - halo));
      for (i64 s = 0; s < t.steps; ++s)
        convolve_row<kTaps, kSilu>(x_rows + s, w + g * weights, t.width, z.taps,
                                   rows.data + (first + step * s - t.start) * rows.stride);
      flush(out, t, rows);
    }
  }
}

inline void conv1d_forward(const ConvForwardArgs& a, i64 begin, i64 end) {
  if (a.sizes.taps == 4)
    return a.sizes.silu ? conv_forward<4, true>(a, begin, end) : conv_forward<4, false>(a, begin, end);
  a.sizes.silu ? conv_forward<0, true>(a, begin, end) : conv_forward<0, false>(a, begin, end);
}

}  // namespace
