// n = x / sqrt(mean of x^2 + eps) and y = n weight, row by row; and the gradient. A row is read twice, the second time
// out of the first cache.
#pragma once

namespace {

using namespace vmamba;

// A sum over a row, in parts of which none waits for another.
struct RowSum {
  static constexpr int kParts = 4;
  Vec parts[kParts];

  RowSum() {
    for (Vec& part : parts) part = Vec::set(0.0f);
  }
  float total() const { return sum((parts[0] + parts[1]) + (parts[2] + parts[3])); }
};

// Calls add(part of a sum, first channel, Whole or Part) over a row.
template <class Add>
VMAMBA_INLINE void by_parts(i64 channels, const Add& add) {
  constexpr i64 kTogether = RowSum::kParts * Vec::W;
  const i64 together = channels / kTogether * kTogether;
  for (i64 c = 0; c < together; c += kTogether)
    for (int part = 0; part < RowSum::kParts; ++part) add(part, c + part * Vec::W, Whole{});
  by_vectors(channels - together, [&](i64 c, auto lanes) { add(0, together + c, lanes); });
}

VMAMBA_INLINE float inverse_root(const RmsNormArgs& a, const RowSum& squares) {
  return 1.0f / __builtin_sqrtf(squares.total() / static_cast<float>(a.channels) + a.eps);
}

// Calls run(row) for the rows of a task.
template <class Run>
VMAMBA_INLINE void by_rows(const RmsNormArgs& a, i64 task, const Run& run) {
  const i64 first = task * a.rows_per_task;
  const i64 last = first + a.rows_per_task < a.rows ? first + a.rows_per_task : a.rows;
  for (i64 row = first; row < last; ++row) run(row);
}

void rms_norm_forward(const RmsNormArgs& a, i64 begin, i64 end) {
  for (i64 task = begin; task < end; ++task)
    by_rows(a, task, [&](i64 row) {
      const float* x = a.x + row * a.channels;
      float* y = a.to + row * a.channels;
      RowSum squares;
      by_parts(a.channels, [&](int part, i64 c, auto lanes) {
        const Vec v = lanes.load(x + c);
        squares.parts[part] = fma(v, v, squares.parts[part]);
      });
      const Vec r = Vec::set(inverse_root(a, squares));
      by_vectors(a.channels,
                 [&](i64 c, auto lanes) { lanes.store(lanes.load(x + c) * r * lanes.load(a.weight + c), y + c); });
    });
}

// With g = dy weight, dx = r (g - n mean(g n)). r is computed again: its sum is taken beside that of g n.
void rms_norm_backward(const RmsNormArgs& a, i64 begin, i64 end) {
  for (i64 task = begin; task < end; ++task) {
    float* dweight = a.dweight + task * a.channels;
    for (i64 c = 0; c < a.channels; ++c) dweight[c] = 0.0f;
    by_rows(a, task, [&](i64 row) {
      const float *x = a.x + row * a.channels, *dy = a.dy + row * a.channels;
      float* dx = a.to + row * a.channels;
      RowSum squares, products;
      by_parts(a.channels, [&](int part, i64 c, auto lanes) {
        const Vec v = lanes.load(x + c);
        squares.parts[part] = fma(v, v, squares.parts[part]);
        products.parts[part] = fma(lanes.load(dy + c) * lanes.load(a.weight + c), v, products.parts[part]);
      });
      const float root = inverse_root(a, squares);
      const Vec r = Vec::set(root), minus_mean = Vec::set(-products.total() * root / static_cast<float>(a.channels));
      by_vectors(a.channels, [&](i64 c, auto lanes) {
        const Vec n = lanes.load(x + c) * r, d = lanes.load(dy + c);
        lanes.store(fma(n, minus_mean, d * lanes.load(a.weight + c)) * r, dx + c);
        lanes.store(fma(d, n, lanes.load(dweight + c)), dweight + c);
      });
    });
  }
}

}  // namespace
