// SIMD vectors through the compiler's vector extensions: one source for every instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "lstm/host_device.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

// The bytes of a vector; on x86 also the intrinsics' prefix and type.
#if defined(__AVX512F__)
#define LSTM_FUSED_VECTOR_BYTES 64
#define LSTM_FUSED_X86(name) _mm512_##name
#define LSTM_FUSED_X86_FLOATS __m512
#elif defined(__AVX2__)
#define LSTM_FUSED_VECTOR_BYTES 32
#define LSTM_FUSED_X86(name) _mm256_##name
#define LSTM_FUSED_X86_FLOATS __m256
#else
#define LSTM_FUSED_VECTOR_BYTES 16
#define LSTM_FUSED_X86(name) _mm_##name
#define LSTM_FUSED_X86_FLOATS __m128
#endif

// For lambdas and members: a call that was not inlined would pass a register tile through memory.
#define LSTM_FUSED_INLINE __attribute__((always_inline))

namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME {

template <typename T>
struct VecTraits;

template <>
struct VecTraits<float> {
  typedef float Vec __attribute__((vector_size(LSTM_FUSED_VECTOR_BYTES)));
  typedef int32_t Bits __attribute__((vector_size(LSTM_FUSED_VECTOR_BYTES)));
};

template <>
struct VecTraits<double> {
  typedef double Vec __attribute__((vector_size(LSTM_FUSED_VECTOR_BYTES)));
  typedef int64_t Bits __attribute__((vector_size(LSTM_FUSED_VECTOR_BYTES)));
};

template <typename T>
using Vec = typename VecTraits<T>::Vec;

template <typename T>
constexpr int kLanes = LSTM_FUSED_VECTOR_BYTES / sizeof(T);

template <typename T>
LSTM_FUSED_FN Vec<T> broadcast(T x) {
  return x - Vec<T>{};  // x - 0 keeps the sign of a zero
}

template <typename T>
LSTM_FUSED_FN Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <typename T>
LSTM_FUSED_FN void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

// The first n < lanes values, with one instruction where there is one: a loop over lanes goes through memory.
#if defined(__AVX512F__)
LSTM_FUSED_FN Vec<float> load_first(const float* p, int64_t n) {
  return (Vec<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1 << n) - 1), p);
}
LSTM_FUSED_FN Vec<double> load_first(const double* p, int64_t n) {
  return (Vec<double>)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1 << n) - 1), p);
}
LSTM_FUSED_FN void store_first(float* p, Vec<float> v, int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1 << n) - 1), (__m512)v);
}
LSTM_FUSED_FN void store_first(double* p, Vec<double> v, int64_t n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1 << n) - 1), (__m512d)v);
}
#elif defined(__AVX2__)
template <typename T>
LSTM_FUSED_FN __m256i mask_of_first(int64_t n) {
  using Bits = typename VecTraits<T>::Bits;
  Bits number{};
  for (int lane = 0; lane < kLanes<T>; ++lane) number[lane] = lane;
  return (__m256i)(number < Bits{} + static_cast<int32_t>(n));
}
LSTM_FUSED_FN Vec<float> load_first(const float* p, int64_t n) {
  return (Vec<float>)_mm256_maskload_ps(p, mask_of_first<float>(n));
}
LSTM_FUSED_FN Vec<double> load_first(const double* p, int64_t n) {
  return (Vec<double>)_mm256_maskload_pd(p, mask_of_first<double>(n));
}
LSTM_FUSED_FN void store_first(float* p, Vec<float> v, int64_t n) {
  _mm256_maskstore_ps(p, mask_of_first<float>(n), (__m256)v);
}
LSTM_FUSED_FN void store_first(double* p, Vec<double> v, int64_t n) {
  _mm256_maskstore_pd(p, mask_of_first<double>(n), (__m256d)v);
}
#else
template <typename T>
LSTM_FUSED_FN Vec<T> load_first(const T* p, int64_t n) {
  Vec<T> v{};
  for (int64_t lane = 0; lane < n; ++lane) v[lane] = p[lane];
  return v;
}
template <typename T>
LSTM_FUSED_FN void store_first(T* p, Vec<T> v, int64_t n) {
  for (int64_t lane = 0; lane < n; ++lane) p[lane] = v[lane];
}
#endif

// The first n values, the other lanes zero. Nothing beyond p[n - 1] is touched.
template <typename T>
LSTM_FUSED_FN Vec<T> load(const T* p, int64_t n) {
  return __builtin_expect(n >= kLanes<T>, 1) ? load(p) : load_first(p, n);
}

template <typename T>
LSTM_FUSED_FN void store(T* p, Vec<T> v, int64_t n) {
  if (__builtin_expect(n >= kLanes<T>, 1)) return store(p, v);
  store_first(p, v, n);
}

// low where v < low, high where v > high: NaN stays NaN. An instruction each, which the compiler does not find by
// itself.
template <typename T>
LSTM_FUSED_FN Vec<T> at_least(Vec<T> v, T low) {
#if defined(__SSE2__)
  if constexpr (sizeof(T) == 4)
    return (Vec<T>)LSTM_FUSED_X86(max_ps)((LSTM_FUSED_X86_FLOATS)broadcast(low), (LSTM_FUSED_X86_FLOATS)v);
#endif
  return v < low ? broadcast(low) : v;
}
template <typename T>
LSTM_FUSED_FN Vec<T> at_most(Vec<T> v, T high) {
#if defined(__SSE2__)
  if constexpr (sizeof(T) == 4)
    return (Vec<T>)LSTM_FUSED_X86(min_ps)((LSTM_FUSED_X86_FLOATS)broadcast(high), (LSTM_FUSED_X86_FLOATS)v);
#endif
  return v > high ? broadcast(high) : v;
}

// Zero in the lanes from n on.
template <typename T>
LSTM_FUSED_FN Vec<T> first_lanes(Vec<T> v, int64_t n) {
  for (int64_t lane = n; lane < kLanes<T>; ++lane) v[lane] = 0;
  return v;
}

// f(j, n) for vectors at j = 0, L, 2L, ... of `count` values, n of whose lanes are real. All but the last are whole,
// which the compiler sees.
template <typename T, class F>
LSTM_FUSED_FN void for_each_vector_of(int64_t count, F f) {
  int64_t j = 0;
  for (; j + kLanes<T> <= count; j += kLanes<T>) f(j, int64_t{kLanes<T>});
  if (j < count) f(j, count - j);
}

// The sum of all lanes, as a tree: a fixed order.
template <typename T>
LSTM_FUSED_FN T sum_lanes(Vec<T> v) {
  alignas(LSTM_FUSED_VECTOR_BYTES) T lanes[kLanes<T>];
  store(lanes, v);
#pragma GCC unroll 8
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
#pragma GCC unroll 16
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

// One stage of a transposition: lanes whose number has the bit `Distance` change places between a and b, so that a
// keeps what belongs to the rows without that bit and b what belongs to the rows with it.
template <typename T, int Distance>
LSTM_FUSED_FN void exchange_lanes(Vec<T>& a, Vec<T>& b) {
#if defined(__clang__)
  for (int lane = 0; lane < kLanes<T>; ++lane)
    if (!(lane & Distance)) {
      const T moved = a[lane + Distance];
      a[lane + Distance] = b[lane];
      b[lane] = moved;
    }
#else
  using Bits = typename VecTraits<T>::Bits;
  Bits first{}, second{};
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    const bool moves = lane & Distance;
    first[lane] = moves ? kLanes<T> + lane - Distance : lane;
    second[lane] = moves ? kLanes<T> + lane : lane + Distance;
  }
  const Vec<T> low = __builtin_shuffle(a, b, first);
  b = __builtin_shuffle(a, b, second);
  a = low;
#endif
}

// Transposes a square of lanes x lanes values in registers.
template <typename T, int Distance = kLanes<T> / 2>
LSTM_FUSED_FN void transpose(Vec<T> (&rows)[kLanes<T>]) {
#pragma GCC unroll 16
  for (int row = 0; row < kLanes<T>; ++row)
    if (!(row & Distance)) exchange_lanes<T, Distance>(rows[row], rows[row + Distance]);
  if constexpr (Distance > 1) transpose<T, Distance / 2>(rows);
}

// to[c * to_stride + r] = from[r * from_stride + c] for r < lanes and c < lanes.
template <typename T>
LSTM_FUSED_FN void transpose_square(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  Vec<T> rows[kLanes<T>];
#pragma GCC unroll 16
  for (int row = 0; row < kLanes<T>; ++row) rows[row] = load(from + row * from_stride);
  transpose<T>(rows);
#pragma GCC unroll 16
  for (int row = 0; row < kLanes<T>; ++row) store(to + row * to_stride, rows[row]);
}

// 32-bit words in lanes of 64 bits. Whatever the upper halves hold is never looked at: a product takes the lower
// halves. A type of its own, so that the shared mathematics finds these functions.
struct Words {
  typedef uint64_t Lanes __attribute__((vector_size(LSTM_FUSED_VECTOR_BYTES)));
  static constexpr int kLanes = LSTM_FUSED_VECTOR_BYTES / sizeof(uint64_t);
  Lanes lanes;
};

LSTM_FUSED_FN Words operator^(Words a, Words b) { return {a.lanes ^ b.lanes}; }
LSTM_FUSED_FN Words operator^(Words a, uint32_t b) { return {a.lanes ^ b}; }

// One instruction, which the compiler does not find by itself.
LSTM_FUSED_FN Words wide_product(Words words, uint32_t multiplier) {
  const Words::Lanes multipliers = Words::Lanes{} + multiplier;
#if defined(__AVX512F__)
  return {(Words::Lanes)_mm512_mul_epu32((__m512i)words.lanes, (__m512i)multipliers)};
#elif defined(__AVX2__)
  return {(Words::Lanes)_mm256_mul_epu32((__m256i)words.lanes, (__m256i)multipliers)};
#elif defined(__SSE2__)
  return {(Words::Lanes)_mm_mul_epu32((__m128i)words.lanes, (__m128i)multipliers)};
#else
  return {(words.lanes & 0xFFFFFFFFu) * multipliers};
#endif
}
LSTM_FUSED_FN Words high_half(Words product) { return {product.lanes >> 32}; }
LSTM_FUSED_FN Words low_half(Words product) { return product; }

LSTM_FUSED_FN int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
LSTM_FUSED_FN int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME
