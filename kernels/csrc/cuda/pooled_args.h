// What the kernels of the pooled scan are told.
//
// B batch, K groups of D channels, KD = K*D, L tokens as [outer, pool1, inner, pool2], P = outer * inner pooled steps of
// pool1 * pool2 tokens. Where the groups are averaged an image is all K of them, otherwise one.
#pragma once

#include "words.h"

namespace vmamba::cuda {

// [batch, group, channel, token]; strides in bytes.
struct Image {
  char* data = nullptr;
  i64 batch = 0;
  i64 group = 0;
  i64 channel = 0;
  i64 token = 0;
  int piece = 0;  // bytes (16, 8 or one element) that divide every address at which a vector of elements can start

  __host__ __device__ char* at(i64 b, i64 g, i64 c, i64 l) const {
    return data + b * batch + g * group + c * channel + l * token;
  }
};

struct Pooled {
  i64 batch = 0;
  int tokens = 0;
  int steps = 0;
  int inner = 1, pool1 = 1, pool2 = 1;
  int groups = 1;
  int added = 1;     // groups of an image: K where they are averaged, else 1
  int channels = 0;  // of a group
  bool channel_last = false;
  int splits = 1;    // into how many threads the tokens of a step (forward) or the steps (backward) are cut

  __host__ __device__ i64 images() const { return batch * (groups / added); }
  __host__ __device__ i64 all_channels() const { return i64(groups) * channels; }
  __host__ __device__ int pool() const { return pool1 * pool2; }
};

// The tokens of one step, one after another, from its i-th on.
struct TokensOfStep {
  int token, place, pool2, jump;

  __device__ __forceinline__ TokensOfStep(const Pooled& p, int step, int i)
      : place(i % p.pool2), pool2(p.pool2), jump((p.inner - 1) * p.pool2) {
    token = ((step / p.inner * p.pool1 + i / p.pool2) * p.inner + step % p.inner) * p.pool2 + place;
  }
  __device__ __forceinline__ void next() {
    ++token;
    if (++place == pool2) place = 0, token += jump;
  }
};

// The steps of the tokens, one after another, from token l on.
struct StepsOfTokens {
  int place, inner, pool1, outer;

  __device__ __forceinline__ StepsOfTokens(const Pooled& p, int l) {
    place = l % p.pool2;
    inner = l / p.pool2 % p.inner;
    pool1 = l / p.pool2 / p.inner % p.pool1;
    outer = l / p.pool2 / p.inner / p.pool1;
  }
  __device__ __forceinline__ int step(const Pooled& p) const { return outer * p.inner + inner; }
  __device__ __forceinline__ void next(const Pooled& p) {
    if (++place < p.pool2) return;
    place = 0;
    if (++inner < p.inner) return;
    inner = 0;
    if (++pool1 < p.pool1) return;
    pool1 = 0;
    ++outer;
  }
};

struct Expand {
  Pooled pooled;
  Image u;
  const float* z = nullptr;  // [B, P, KD]
  const float* D = nullptr;  // [KD] or absent
  int D_piece = 4;           // bytes that divide every address at which a vector of D can start
  Image y;
};

struct Gather {
  Pooled pooled;
  Image dy;
  Image u;
  const float* D = nullptr;  // [KD] or absent: then neither u nor du is touched
  int D_piece = 4;
  Image du;
  float* dz = nullptr;  // [B, P, D] where the groups are averaged, else [B, P, KD]
  float* dD = nullptr;  // [B, splits, KD], channel-first [B, KD]
};

struct Rows {
  const float* from = nullptr;  // [rows, columns]
  i64 rows = 0;
  i64 columns = 0;
  float* to = nullptr;  // [columns]
};

}  // namespace vmamba::cuda
