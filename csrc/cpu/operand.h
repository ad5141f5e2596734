// What products multiply: numbers of the type they are computed in or, where the CPU has the instruction
// (AVX-512-BF16), pairs of bfloat16.
//
// An operand O is what one lane of a vector takes in at a time: kGroup<O> numbers with consecutive k. It has the size
// of a T, so that panels and tiles of either kind look alike: a panel of pairs has half the depth. A depth that is not
// a multiple of the group ends with zeros.
#pragma once

#include <type_traits>

#include "cpu/vec.h"

namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME {

struct Pair {
  uint16_t even, odd;  // the bits of two bfloat16
};
static_assert(sizeof(Pair) == sizeof(float), "a pair takes the lane of a float");

template <typename O>
constexpr int64_t kGroup = std::is_same<O, Pair>::value ? 2 : 1;

// How many operands hold `count` numbers.
template <typename O>
LSTM_FUSED_FN int64_t operands(int64_t count) {
  return ceil_div(count, kGroup<O>);
}

// --- Operands that are numbers.

template <typename T>
LSTM_FUSED_FN Vec<T> load_operands(const T* p) {
  return load(p);
}

template <typename T>
LSTM_FUSED_FN Vec<T> broadcast_operand(T x) {
  return broadcast(x);
}

template <typename V>
LSTM_FUSED_FN void add_product(V& sum, V a, V b) {
  sum += a * b;
}

// A row as operands along it: as it lies, or in the buffer from `offset` on (the buffer of numbers is null).
template <typename T>
LSTM_FUSED_FN const T* operand_row(const T* row, int64_t, T*, int64_t) {
  return row;
}

// Rows k, k + 1, ... of a group as one row of operands, n lanes of it; null for a row past the last.
template <typename T>
LSTM_FUSED_FN void store_group(const T* const (&rows)[1], int64_t n, T* to) {
  store(to, load(rows[0], n));
}

// The same, of few columns and each times its mask where there is one.
template <typename T, int Columns>
LSTM_FUSED_FN void store_columns(const T* const (&rows)[1], const T* const (&masks)[1], T (&to)[Columns]) {
  if (masks[0])
    for (int i = 0; i < Columns; ++i) to[i] = rows[0][i] * masks[0][i];
  else
    std::memcpy(to, rows[0], sizeof to);
}

// to[c * to_stride + r] = the c-th operand of row r, for r < lanes and c < lanes.
template <typename T>
LSTM_FUSED_FN void transpose_operands(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  transpose_square(from, from_stride, to, to_stride);
}

// --- Operands that are pairs: rounded to nearest even, as everything that becomes bfloat16. These instructions take
// denormal numbers for zeros, and give zeros for them.
#if defined(__AVX512BF16__)

LSTM_FUSED_FN __m512bh load_operands(const Pair* p) { return (__m512bh)_mm512_loadu_si512(p); }

LSTM_FUSED_FN __m512bh broadcast_operand(Pair pair) {
  int32_t bits;
  std::memcpy(&bits, &pair, sizeof bits);
  return (__m512bh)_mm512_set1_epi32(bits);
}

LSTM_FUSED_FN void add_product(Vec<float>& sum, __m512bh a, __m512bh b) {
  sum = (Vec<float>)_mm512_dpbf16_ps((__m512)sum, a, b);
}

LSTM_FUSED_FN __m256i to_bfloat16(Vec<float> v) { return (__m256i)_mm512_cvtneps_pbh((__m512)v); }

LSTM_FUSED_FN __m512i pairs_of(Vec<float> even, Vec<float> odd) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(to_bfloat16(even)),
                         _mm512_slli_epi32(_mm512_cvtepu16_epi32(to_bfloat16(odd)), 16));
}

LSTM_FUSED_FN const Pair* operand_row(const float* row, int64_t count, Pair* buffer, int64_t offset) {
  buffer += offset;
  for (int64_t k = 0; k < count; k += kLanes<float>) {
    const __m256i rounded = to_bfloat16(load(row + k, count - k));
    const int64_t left = operands<Pair>(count - k) * static_cast<int64_t>(sizeof(Pair));
    if (left >= static_cast<int64_t>(sizeof rounded))
      std::memcpy(buffer + k / 2, &rounded, sizeof rounded);
    else
      std::memcpy(buffer + k / 2, &rounded, left);
  }
  return buffer;
}

LSTM_FUSED_FN void store_group(const float* const (&rows)[2], int64_t n, Pair* to) {
  const Vec<float> odd = rows[1] ? load(rows[1], n) : Vec<float>{};
  const __m512i pairs = pairs_of(load(rows[0], n), odd);
  if (n >= kLanes<float>)
    _mm512_storeu_si512(to, pairs);
  else
    _mm512_mask_storeu_epi32(to, static_cast<__mmask16>((1 << n) - 1), pairs);
}

template <int Columns>
LSTM_FUSED_FN void store_columns(const float* const (&rows)[2], const float* const (&masks)[2], Pair (&to)[Columns]) {
  constexpr __mmask16 kFirst = (1 << Columns) - 1;
  __m512 values[2] = {};
  for (int k = 0; k < 2; ++k) {
    if (!rows[k]) continue;
    values[k] = _mm512_maskz_loadu_ps(kFirst, rows[k]);
    if (masks[k]) values[k] *= _mm512_maskz_loadu_ps(kFirst, masks[k]);
  }
  _mm512_mask_storeu_epi32(to, kFirst, pairs_of((Vec<float>)values[0], (Vec<float>)values[1]));
}

LSTM_FUSED_FN void transpose_operands(const float* from, int64_t from_stride, Pair* to, int64_t to_stride) {
  constexpr int L = kLanes<float>;
  Vec<float> rows[L];  // lanes that hold pairs: they are moved, never computed with
#pragma GCC unroll 16
  for (int row = 0; row < L; ++row) {
    const __m256i first = to_bfloat16(load(from + row * from_stride)),
                  second = to_bfloat16(load(from + row * from_stride + L));
    rows[row] = (Vec<float>)_mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
  }
  transpose<float>(rows);
#pragma GCC unroll 16
  for (int row = 0; row < L; ++row) std::memcpy(to + row * to_stride, &rows[row], sizeof rows[row]);
}

#endif

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME
