// Numbers of every dtype of queries and pools, read into vectors of floats.
//
// Compiler vectors (GCC's and Clang's vector_size) as wide as the instruction set that the file is
// compiled for; intrinsics only where the compilers have no other word for an instruction.

#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRegisters = 16;
#else
constexpr int kLanes = 4, kRegisters = 32;
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

struct Bf16 {
  uint16_t bits;
};
struct Fp8 {  // float8_e4m3fn
  uint8_t bits;
};

// What a loaded number must be multiplied by; the caller folds it into a scale.
template <typename T>
constexpr float kFactor = 1.0f;

template <typename Vector, typename T>
inline Vector Copy(const T* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

inline Floats Load(const float* from) { return Copy<Floats>(from); }

// GCC 12 widens in twice as many instructions if told so in general words.
#if defined(__AVX512F__)
inline Floats Load(const Bf16* from) {
  return reinterpret_cast<Floats>(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(Copy<__m256i>(from)), 16));
}
inline Floats Load(const int8_t* from) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(Copy<__m128i>(from)));
}
#elif defined(__AVX2__)
inline Floats Load(const Bf16* from) {
  return reinterpret_cast<Floats>(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(Copy<__m128i>(from)), 16));
}
inline Floats Load(const int8_t* from) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}
#else
inline Floats Load(const Bf16* from) {
  return reinterpret_cast<Floats>(__builtin_convertvector(Copy<Halves>(from), Words) << 16);
}
inline Floats Load(const int8_t* from) {
  return __builtin_convertvector(__builtin_convertvector(Copy<Bytes>(from), Ints), Floats);
}
#endif

#if defined(__AVX2__)
// As float16 bits the number is 2^-8 times as large, subnormals included, and the processor's
// conversion keeps those also where arithmetic flushes them, as XLA's threads do.
template <>
constexpr float kFactor<Fp8> = 256.0f;

inline Floats Load(const Fp8* from) {
#if defined(__AVX512F__)
  const __m256i wide = _mm256_cvtepi8_epi16(Copy<__m128i>(from));
  return _mm512_cvtph_ps(
      _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(int16_t(0xbf80))));
#else
  const __m128i wide =
      _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  return _mm256_cvtph_ps(_mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16(int16_t(0xbf80))));
#endif
}
#else
inline Floats Load(const Fp8* from) {
  const Words bits = reinterpret_cast<Words>(__builtin_convertvector(Copy<Bytes>(from), Ints));
  const Words sign = bits & 0x80000000u, magnitude = bits & 0x7fu;
  const Words normal = (magnitude << 20) + (120u << 23);
  const Floats subnormal = __builtin_convertvector(reinterpret_cast<Ints>(magnitude), Floats) *
                           (1.0f / 512);
  const Words number = magnitude < 8 ? reinterpret_cast<Words>(subnormal) : normal;
  return reinterpret_cast<Floats>(number | sign);
}
#endif

// The first `count` numbers, then zeros; never reads past them.
template <typename T>
inline Floats LoadSome(const T* from, int64_t count) {
  T numbers[kLanes] = {};
  std::memcpy(numbers, from, count * sizeof(T));
  return Load(numbers);
}

inline void Store(Floats x, float* to) { std::memcpy(to, &x, sizeof x); }

inline Floats Broadcast(float x) { return x - Floats{}; }

inline float ToFloat(float x) { return x; }
inline float ToFloat(Bf16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

inline void FromFloat(float x, float* to) { *to = x; }
inline void FromFloat(float x, Bf16* to) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  // Round to nearest, ties to even, as XLA does.
  to->bits = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <int... kIndices>
inline Floats Pick(Floats a, Floats b, std::integer_sequence<int, kIndices...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, kIndices...);
#else
  return __builtin_shuffle(a, b, Ints{kIndices...});
#endif
}

// Where bit kStep of a lane's index is set b's lane, else a's; with kFlip that of its neighbour.
template <int kStep, int kFlip, int... kIndices>
inline Floats PickBy(Floats a, Floats b, std::integer_sequence<int, kIndices...>) {
  return Pick(a, b,
              std::integer_sequence<int, ((kIndices & kStep) ? kLanes + (kIndices ^ kFlip)
                                                             : (kIndices ^ kFlip))...>{});
}

// Lane i of the result is the sum of all lanes of vectors[i]: a transposition that adds on its way.
template <int kStep = 1>
inline Floats SumEach(Floats* vectors) {
  constexpr auto kIndices = std::make_integer_sequence<int, kLanes>{};
  if constexpr (kStep == kLanes) {
    return vectors[0];
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i += 2 * kStep) {
      const Floats a = vectors[i], b = vectors[i + kStep];
      vectors[i] = PickBy<kStep, 0>(a, b, kIndices) + PickBy<kStep, kStep>(a, b, kIndices);
    }
    return SumEach<2 * kStep>(vectors);
  }
}

template <int kStep = 1>
inline float Sum(Floats x) {
  if constexpr (kStep == kLanes) {
    return x[0];
  } else {
    return Sum<2 * kStep>(
        x + PickBy<kStep, kStep>(x, x, std::make_integer_sequence<int, kLanes>{}));
  }
}

inline Floats Max(Floats a, Floats b) { return a > b ? a : b; }

template <int kStep = 1>
inline float Max(Floats x) {
  if constexpr (kStep == kLanes) {
    return x[0];
  } else {
    return Max<2 * kStep>(
        Max(x, PickBy<kStep, kStep>(x, x, std::make_integer_sequence<int, kLanes>{})));
  }
}

}  // namespace
