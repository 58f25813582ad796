// A step of the online softmax: from scores to weights.

#pragma once

#include <cstring>

#include "attend.h"
#include "numbers.h"

namespace {

// Where a running maximum starts; finite, since (-inf) - (-inf) would be NaN.
constexpr float kFloor = -1e30f;

// exp for x <= 0 with a relative error below 2e-7; 0 below -87.
inline Floats Exp(Floats x) {
  const Floats clamped = Max(x, Broadcast(-87.0f));
  // Adding and taking away 1.5 * 2^23 rounds to an integer.
  const Floats n = (clamped * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
  const Floats r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  Floats p = Broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  return x < -87.0f ? Floats{} : p * reinterpret_cast<Floats>(power);
}

inline float Exp(float x) { return Exp(Broadcast(x))[0]; }

// Factors of the keys and values of one head, null where there are none.
struct Scales {
  float *keys, *values;
};

// Turns scores of keys lo..hi into weights, all others into 0, and updates the query's state.
void Weigh(const distkv::Problem& problem, int64_t lo, int64_t hi, int64_t stride, float factor,
           const Scales& scales, float* scores, float* top, float* total, float* rescale) {
  *rescale = 1.0f;
  if (lo >= hi) {
    std::memset(scores, 0, stride * sizeof(float));
    return;
  }
  Floats tops = Broadcast(*top);
  for (int64_t s = 0; s < stride; s += kLanes) {
    Floats score = Load(scores + s) * factor;
    if (scales.keys) score *= Load(scales.keys + s);
    if (problem.soft_cap > 0) {
      // tanh(x) = (1 - e) / (1 + e) with e = exp(-2 x), for x >= 0.
      const Floats x = score * (1.0f / problem.soft_cap), size = x < 0.0f ? -x : x;
      const Floats e = Exp(-2.0f * size), bent = problem.soft_cap * (1.0f - e) / (1.0f + e);
      score = x < 0.0f ? -bent : bent;
    }
    if (s < lo || s + kLanes > hi)
      for (int i = 0; i < kLanes; ++i)
        if (s + i < lo || s + i >= hi) score[i] = kFloor;
    Store(score, scores + s);
    tops = Max(tops, score);
  }
  const float new_top = Max(tops);
  Floats totals{};
  for (int64_t s = 0; s < stride; s += kLanes) {
    Floats weight = Exp(Load(scores + s) - new_top);
    totals += weight;
    if (scales.values) weight *= Load(scales.values + s);
    Store(weight, scores + s);
  }
  if (new_top != *top) *rescale = Exp(*top - new_top);
  *top = new_top;
  *total = *total * *rescale + Sum(totals);
}

}  // namespace
