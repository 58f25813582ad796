// The two products of attention, for as many queries at a time as registers allow.

#pragma once

#include <algorithm>

#include "numbers.h"

namespace {

// Half of the registers hold sums, the others what is multiplied.
constexpr int kSums = kRegisters / 2;

// How a query's and a key's numbers are multiplied: kStep of each per vector instruction.
template <typename Query, typename Key>
struct Multiplier {
  static constexpr int kStep = kLanes;
  using Operand = Floats;
  template <typename T>
  static Operand Read(const T* from) { return Load(from); }
  template <typename T>
  static Operand ReadSome(const T* from, int64_t count) { return LoadSome(from, count); }
  static Floats Add(Floats sum, Operand a, Operand b) { return sum + a * b; }
};

#if defined(__AVX512BF16__)
// Products are exact and sums float32: nothing is rounded that is not rounded above too.
template <>
struct Multiplier<Bf16, Bf16> {
  static constexpr int kStep = 2 * kLanes;
  using Operand = __m512bh;
  static Operand Read(const Bf16* from) { return Copy<Operand>(from); }
  static Operand ReadSome(const Bf16* from, int64_t count) {
    Bf16 numbers[kStep] = {};
    std::memcpy(numbers, from, count * sizeof(Bf16));
    return Read(numbers);
  }
  static Floats Add(Floats sum, Operand a, Operand b) { return _mm512_dpbf16_ps(sum, a, b); }
};
#endif

inline void Prefetch(const char* from, int64_t num_bytes) {
  for (int64_t i = 0; i < num_bytes; i += 64) __builtin_prefetch(from + i, 0, 3);
}

// scores[n * stride + s] = queries[n] . keys[s] for kQueries queries and kKeys keys: each number of
// a key is loaded and converted once for all of them.
template <int kQueries, int kKeys, typename Query, typename Key>
inline void DotTile(const Query* queries, int64_t width, const Key* keys, int64_t head_dim,
                    float* scores, int64_t stride) {
  using M = Multiplier<Query, Key>;
  constexpr int kVectors = (kQueries * kKeys + kLanes - 1) / kLanes;
  Floats sums[kVectors * kLanes] = {};
  int64_t d = 0;
  for (; d + M::kStep <= head_dim; d += M::kStep) {
    typename M::Operand key[kKeys];
#pragma GCC unroll 16
    for (int k = 0; k < kKeys; ++k) key[k] = M::Read(keys + k * head_dim + d);
#pragma GCC unroll 16
    for (int n = 0; n < kQueries; ++n) {
      const typename M::Operand query = M::Read(queries + n * width + d);
#pragma GCC unroll 16
      for (int k = 0; k < kKeys; ++k)
        sums[n * kKeys + k] = M::Add(sums[n * kKeys + k], query, key[k]);
    }
  }
  if (d < head_dim) {
#pragma GCC unroll 16
    for (int k = 0; k < kKeys; ++k) {
      const typename M::Operand key = M::ReadSome(keys + k * head_dim + d, head_dim - d);
#pragma GCC unroll 16
      for (int n = 0; n < kQueries; ++n)
        sums[n * kKeys + k] =
            M::Add(sums[n * kKeys + k], M::ReadSome(queries + n * width + d, head_dim - d), key);
    }
  }
  float all[kVectors * kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kVectors; ++i) Store(SumEach(sums + i * kLanes), all + i * kLanes);
#pragma GCC unroll 16
  for (int n = 0; n < kQueries; ++n)
    std::memcpy(scores + n * stride, all + n * kKeys, kKeys * sizeof(float));
}

// As many keys, or vectors of columns, as there are registers for their sums; a power of two.
template <int kQueries>
constexpr int AtOnce() {
  int count = 1;
  while (2 * count * kQueries <= kSums && count < 8) count *= 2;
  return count;
}

template <int kQueries, typename Query, typename Key>
void DotsOf(int64_t num_keys, const Query* queries, int64_t width, const Key* keys,
            int64_t head_dim, float* scores, int64_t stride, const char* ahead) {
  constexpr int kKeys = AtOnce<kQueries>();
  const int64_t key_bytes = head_dim * sizeof(Key);
  int64_t s = 0;
  for (; s + kKeys <= num_keys; s += kKeys) {
    if (ahead) Prefetch(ahead + s * key_bytes, kKeys * key_bytes);
    DotTile<kQueries, kKeys>(queries, width, keys + s * head_dim, head_dim, scores + s, stride);
  }
  for (; s < num_keys; ++s)
    DotTile<kQueries, 1>(queries, width, keys + s * head_dim, head_dim, scores + s, stride);
}

// rows[n] = rows[n] * rescale[n] + sum over s of weights[n, s] * values[s], for kQueries rows and
// kVectors vectors of their columns, which stay in registers while the values pass. No rescale: 1.
template <int kQueries, int kVectors, bool kIsTail, typename Value>
inline void AddTile(int64_t num_values, const float* weights, int64_t stride, const Value* values,
                    int64_t value_width, int64_t columns, float* rows, int64_t width,
                    const float* rescale, const char* ahead) {
  Floats sums[kQueries][kVectors];
#pragma GCC unroll 16
  for (int n = 0; n < kQueries; ++n)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v)
      sums[n][v] = Load(rows + n * width + v * kLanes);
  if (rescale)
#pragma GCC unroll 16
    for (int n = 0; n < kQueries; ++n)
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sums[n][v] *= rescale[n];
  const int64_t value_bytes = value_width * sizeof(Value);
  for (int64_t s = 0; s < num_values; ++s) {
    if (ahead) Prefetch(ahead + s * value_bytes, value_bytes);
    Floats value[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const Value* from = values + s * value_width + v * kLanes;
      value[v] = kIsTail ? LoadSome(from, columns) : Load(from);
    }
#pragma GCC unroll 16
    for (int n = 0; n < kQueries; ++n) {
      const Floats weight = Broadcast(weights[n * stride + s]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sums[n][v] += weight * value[v];
    }
  }
#pragma GCC unroll 16
  for (int n = 0; n < kQueries; ++n)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) Store(sums[n][v], rows + n * width + v * kLanes);
}

// All columns from `d` on, kVectors vectors at a time, then half as many, and so on.
template <int kQueries, int kVectors, typename Value>
inline void AddColumns(int64_t d, int64_t num_values, const float* weights, int64_t stride,
                       const Value* values, int64_t value_width, float* rows, int64_t width,
                       const float* rescale, const char* ahead) {
  for (; d + kVectors * kLanes <= value_width; d += kVectors * kLanes, ahead = nullptr)
    AddTile<kQueries, kVectors, false>(num_values, weights, stride, values + d, value_width, 0,
                                       rows + d, width, rescale, ahead);
  if constexpr (kVectors > 1)
    AddColumns<kQueries, kVectors / 2>(d, num_values, weights, stride, values, value_width, rows,
                                       width, rescale, ahead);
  else if (d < value_width)
    AddTile<kQueries, 1, true>(num_values, weights, stride, values + d, value_width,
                               value_width - d, rows + d, width, rescale, ahead);
}

template <int kQueries, typename Value>
void AddOf(int64_t num_values, const float* weights, int64_t stride, const Value* values,
           int64_t value_width, float* rows, int64_t width, const float* rescale,
           const char* ahead) {
  AddColumns<kQueries, AtOnce<kQueries>()>(0, num_values, weights, stride, values,
                                                  value_width, rows, width, rescale, ahead);
}

// Scores of any number of queries; `ahead` is what will be read next, and is prefetched on the way.
template <typename Query, typename Key>
void Dots(int64_t num_queries, int64_t num_keys, const Query* queries, int64_t width,
          const Key* keys, int64_t head_dim, float* scores, int64_t stride, const char* ahead) {
  for (int64_t n = 0; n < num_queries; ahead = nullptr) {
    const int64_t left = num_queries - n;
    const int64_t taken = left >= 8 ? 8 : left >= 4 ? 4 : left;
    auto dots = taken == 8   ? DotsOf<8, Query, Key>
                : taken == 4 ? DotsOf<4, Query, Key>
                : taken == 3 ? DotsOf<3, Query, Key>
                : taken == 2 ? DotsOf<2, Query, Key>
                             : DotsOf<1, Query, Key>;
    dots(num_keys, queries + n * width, width, keys, head_dim, scores + n * stride, stride, ahead);
    n += taken;
  }
}

// Adds weighted values to the rows of any number of queries.
template <typename Value>
void AddWeighted(int64_t num_queries, int64_t num_values, const float* weights, int64_t stride,
                 const Value* values, int64_t value_width, float* rows, int64_t width,
                 const float* rescale, const char* ahead) {
  for (int64_t n = 0; n < num_queries; ahead = nullptr) {
    const int64_t left = num_queries - n;
    const int64_t taken = left >= 8 ? 8 : left >= 4 ? 4 : left;
    auto add = taken == 8   ? AddOf<8, Value>
               : taken == 4 ? AddOf<4, Value>
               : taken == 3 ? AddOf<3, Value>
               : taken == 2 ? AddOf<2, Value>
                            : AddOf<1, Value>;
    add(num_values, weights + n * stride, stride, values, value_width, rows + n * width, width,
        rescale ? rescale + n : nullptr, ahead);
    n += taken;
  }
}

}  // namespace
