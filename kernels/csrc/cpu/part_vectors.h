// Vectors of a row of channels: whole ones, and the last, partial one, which goes through a copy padded with zeros.
#pragma once

namespace {

struct Whole {
  VMAMBA_INLINE Vec load(const float* p) const { return Vec::load(p); }
  VMAMBA_INLINE void store(Vec v, float* p) const { v.store(p); }
};

struct Part {
  vmamba::i64 count;

  VMAMBA_INLINE Vec load(const float* p) const {
    float padded[Vec::W] = {};
    for (vmamba::i64 i = 0; i < count; ++i) padded[i] = p[i];
    return Vec::load(padded);
  }
  VMAMBA_INLINE void store(Vec v, float* p) const {
    float padded[Vec::W];
    v.store(padded);
    for (vmamba::i64 i = 0; i < count; ++i) p[i] = padded[i];
  }
};

// Calls run(first channel, Whole or Part) over a row.
template <class Run>
VMAMBA_INLINE void by_vectors(vmamba::i64 channels, const Run& run) {
  vmamba::i64 c = 0;
  for (; c + Vec::W <= channels; c += Vec::W) run(c, Whole{});
  if (c < channels) run(c, Part{channels - c});
}

}  // namespace
