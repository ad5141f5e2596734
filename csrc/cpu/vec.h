// SIMD vectors: what every instruction set does alike. What differs is one file each in simd/, and chosen here.
//
// Every file of an instruction set has
//   LSTM_FUSED_VECTOR_BYTES, kVectorRegisters
//   load_first, store_first   the first n < lanes values; of a load the other lanes are zero; nothing else is touched
//   larger, smaller           of two vectors lane by lane; b where one of them is NaN
//   wide_product              of the lower halves of 64-bit lanes
#pragma once

#include <cstdint>
#include <cstring>

#include "lstm/host_device.h"

#if defined(__AVX512F__)
#include "cpu/simd/avx512.h"
#elif defined(__AVX2__)
#include "cpu/simd/avx2.h"
#elif defined(__SSE2__)
#include "cpu/simd/sse2.h"
#else
#include "cpu/simd/neon.h"
#endif

// For lambdas and members: a call that was not inlined would pass a register tile through memory.
#define LSTM_FUSED_INLINE __attribute__((always_inline))

namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME {

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

// low where v < low, high where v > high: NaN stays NaN.
template <typename T>
LSTM_FUSED_FN Vec<T> at_least(Vec<T> v, T low) {
  return larger(broadcast(low), v);
}
template <typename T>
LSTM_FUSED_FN Vec<T> at_most(Vec<T> v, T high) {
  return smaller(broadcast(high), v);
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

// The same if only the first `rows` rows of `from` and their first `columns` values exist; the others count as zeros.
// Only `columns` rows of `to` are stored, and only the first `width` lanes of each.
template <typename T>
LSTM_FUSED_FN void transpose_part(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to,
                                  int64_t to_stride, int64_t width) {
  Vec<T> square[kLanes<T>];
#pragma GCC unroll 16
  for (int row = 0; row < kLanes<T>; ++row)
    square[row] = row < rows ? load(from + row * from_stride, columns) : Vec<T>{};
  transpose<T>(square);
#pragma GCC unroll 16
  for (int column = 0; column < kLanes<T>; ++column)
    if (column < columns) store(to + column * to_stride, square[column], width);
}

LSTM_FUSED_FN Words operator^(Words a, Words b) { return {a.lanes ^ b.lanes}; }
LSTM_FUSED_FN Words operator^(Words a, uint32_t b) { return {a.lanes ^ b}; }

LSTM_FUSED_FN Words high_half(Words product) { return {product.lanes >> 32}; }
LSTM_FUSED_FN Words low_half(Words product) { return product; }

LSTM_FUSED_FN int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
LSTM_FUSED_FN int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME
