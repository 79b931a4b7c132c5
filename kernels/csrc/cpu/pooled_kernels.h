// The passes of the pooled scan over the tokens: forward, the expansion of the pooled steps with the skip; backward,
// the sums of the gradients of a step's tokens. Either layout; every tensor is read or written once.
#pragma once

namespace {

using namespace vmamba;

template <class T>
VMAMBA_INLINE T* at(const Image& x, i64 b, i64 g, i64 c, i64 l) {
  return static_cast<T*>(x.data) + b * x.batch_stride + g * x.group_stride + c * x.channel_stride + l * x.token_stride;
}

// Calls run(a value of the element type of T, ...).
template <class Run>
void with_type(Type type, const Run& run) {
  if (type == Type::f32) return run(float{});
  if (type == Type::bf16) return run(BFloat16{});
  run(Float16{});
}

// One task: the batch and first group of its image, and its place in it.
struct PooledTask {
  i64 batch, group, place;

  PooledTask(const PooledSizes& s, i64 index, i64 per_image) {
    const i64 image = index / per_image;
    place = index % per_image;
    batch = s.average ? image : image / s.groups;
    group = s.average ? 0 : image % s.groups;
  }
};

template <int K, bool Skip, class T, class O>
void expand_channel_last(const ExpandArgs& a, i64 begin, i64 end) {
  const PooledSizes& s = a.sizes;
  const i64 per_image = (s.tokens() + kTokensOfTask - 1) / kTokensOfTask;
  const float share = 1.0f / K;
  for (i64 index = begin; index < end; ++index) {
    const PooledTask t(s, index, per_image);
    const i64 first = t.place * kTokensOfTask, last = first + kTokensOfTask;
    for (i64 l = first; l < (last < s.tokens() ? last : s.tokens()); ++l) {
      const i64 p = s.step(l);
      const float *z[K], *D[K];
      const T* u[K];
      for (int k = 0; k < K; ++k) {
        z[k] = a.z.at(t.batch, t.group + k, 0, p);
        D[k] = Skip ? a.D + (t.group + k) * s.channels : nullptr;
        u[k] = at<const T>(a.u, t.batch, t.group + k, 0, l);
      }
      expand_line<K, Skip, true, true>(s.channels, z, D, u, share, at<O>(a.y, t.batch, t.group, 0, l));
    }
  }
}

template <int K, bool Skip, class T, class O>
void expand_channel_first(const ExpandArgs& a, i64 begin, i64 end) {
  const PooledSizes& s = a.sizes;
  const float share = 1.0f / K;
  for (i64 index = begin; index < end; ++index) {
    const PooledTask t(s, index, s.channels);
    const i64 c = t.place;
    const float *z[K], *D[K];
    const T* u[K];
    const auto line = [&](i64 p, i64 l) {
      for (int k = 0; k < K; ++k) {
        z[k] = a.z.at(t.batch, t.group + k, c, p);
        D[k] = Skip ? a.D + (t.group + k) * s.channels + c : nullptr;
        u[k] = at<const T>(a.u, t.batch, t.group + k, c, l);
      }
      return at<O>(a.y, t.batch, t.group, c, l);
    };
    for (i64 o = 0; o < s.outer; ++o)
      for (i64 i1 = 0; i1 < s.pool1; ++i1) {
        const i64 p = o * s.inner, l = (o * s.pool1 + i1) * s.inner * s.pool2;
        if (s.pool2 == 1) {
          O* y = line(p, l);
          expand_line<K, Skip, true, false>(s.inner, z, D, u, share, y);
        } else {
          for (i64 m = 0; m < s.inner; ++m) {
            O* y = line(p + m, l + m * s.pool2);
            expand_line<K, Skip, false, false>(s.pool2, z, D, u, share, y);
          }
        }
      }
  }
}

template <int K, bool Skip, class T, class G>
void gather_channel_last(const GatherArgs& a, i64 begin, i64 end) {
  const PooledSizes& s = a.sizes;
  const float share = 1.0f / K;
  for (i64 index = begin; index < end; ++index) {
    const PooledTask t(s, index, s.parts);
    const float* D[K];
    const T* u[K];
    T* du[K];
    float* dD[K];
    for (int k = 0; k < K; ++k) {
      const i64 channel = (t.group + k) * s.channels;
      D[k] = Skip ? a.D + channel : nullptr;
      dD[k] = Skip ? a.dD + (t.batch * s.parts + t.place) * s.groups * s.channels + channel : nullptr;
      u[k] = nullptr, du[k] = nullptr;
      for (i64 c = 0; Skip && c < s.channels; ++c) dD[k][c] = 0.0f;
    }
    for (i64 p = t.place * s.steps() / s.parts; p < (t.place + 1) * s.steps() / s.parts; ++p) {
      float* dz = a.dz.at(t.batch, t.group, 0, p);
      for (i64 c = 0; c < s.channels; ++c) dz[c] = 0.0f;
      for (i64 i1 = 0; i1 < s.pool1; ++i1)
        for (i64 i2 = 0; i2 < s.pool2; ++i2) {
          const i64 l = s.token(p, i1, i2);
          for (int k = 0; Skip && k < K; ++k) {
            u[k] = at<const T>(a.u, t.batch, t.group + k, 0, l);
            du[k] = at<T>(a.du, t.batch, t.group + k, 0, l);
          }
          const G* dy = at<const G>(a.dy, t.batch, t.group, 0, l);
          gather_line<K, Skip, true, true>(s.channels, dy, D, u, share, du, dz, dD);
        }
    }
  }
}

template <int K, bool Skip, class T, class G>
void gather_channel_first(const GatherArgs& a, i64 begin, i64 end) {
  const PooledSizes& s = a.sizes;
  const float share = 1.0f / K;
  for (i64 index = begin; index < end; ++index) {
    const PooledTask t(s, index, s.channels);
    const i64 c = t.place;
    const float* D[K];
    const T* u[K];
    T* du[K];
    float dD_sum[K] = {};
    float* dD[K];
    for (int k = 0; k < K; ++k) {
      D[k] = Skip ? a.D + (t.group + k) * s.channels + c : nullptr;
      dD[k] = &dD_sum[k];
      u[k] = nullptr, du[k] = nullptr;
    }
    float* dz = a.dz.at(t.batch, t.group, c, 0);
    for (i64 p = 0; p < s.steps(); ++p) dz[p] = 0.0f;
    const auto line = [&](i64 l) {
      for (int k = 0; Skip && k < K; ++k) {
        u[k] = at<const T>(a.u, t.batch, t.group + k, c, l);
        du[k] = at<T>(a.du, t.batch, t.group + k, c, l);
      }
      return at<const G>(a.dy, t.batch, t.group, c, l);
    };
    for (i64 o = 0; o < s.outer; ++o)
      for (i64 i1 = 0; i1 < s.pool1; ++i1) {
        const i64 p = o * s.inner, l = (o * s.pool1 + i1) * s.inner * s.pool2;
        if (s.pool2 == 1) {
          const G* dy = line(l);
          gather_line<K, Skip, true, false>(s.inner, dy, D, u, share, du, dz + p, dD);
        } else {
          for (i64 m = 0; m < s.inner; ++m) {
            const G* dy = line(l + m * s.pool2);
            gather_line<K, Skip, false, false>(s.pool2, dy, D, u, share, du, dz + p + m, dD);
          }
        }
      }
    for (int k = 0; Skip && k < K; ++k) a.dD[(t.batch * s.groups + t.group + k) * s.channels + c] = dD_sum[k];
  }
}

// The other tensor of a pass is float32 or of u's type.
template <class Run>
void with_types(Type type, Type other, const Run& run) {
  with_type(type, [&](auto element) {
    if (other == Type::f32)
      run(element, float{});
    else
      run(element, element);
  });
}

template <int K, bool Skip>
void expand_of(const ExpandArgs& a, i64 begin, i64 end) {
  with_types(a.u.type, a.y.type, [&](auto element, auto out) {
    using T = decltype(element);
    using O = decltype(out);
    if (a.sizes.channel_last)
      expand_channel_last<K, Skip, T, O>(a, begin, end);
    else
      expand_channel_first<K, Skip, T, O>(a, begin, end);
  });
}

template <int K, bool Skip>
void gather_of(const GatherArgs& a, i64 begin, i64 end) {
  with_types(a.u.type, a.dy.type, [&](auto element, auto gradient) {
    using T = decltype(element);
    using G = decltype(gradient);
    if (a.sizes.channel_last)
      gather_channel_last<K, Skip, T, G>(a, begin, end);
    else
      gather_channel_first<K, Skip, T, G>(a, begin, end);
  });
}

void expand(const ExpandArgs& a, i64 begin, i64 end) {
  const bool two = a.sizes.added() == 2;
  if (a.D) return two ? expand_of<2, true>(a, begin, end) : expand_of<1, true>(a, begin, end);
  two ? expand_of<2, false>(a, begin, end) : expand_of<1, false>(a, begin, end);
}

void gather(const GatherArgs& a, i64 begin, i64 end) {
  const bool two = a.sizes.added() == 2;
  if (a.D) return two ? gather_of<2, true>(a, begin, end) : gather_of<1, true>(a, begin, end);
  two ? gather_of<2, false>(a, begin, end) : gather_of<1, false>(a, begin, end);
}

}  // namespace
