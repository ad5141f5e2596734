// Operands that are pairs of bfloat16, for AVX-512-BF16: rounded to nearest even, as everything that becomes bfloat16.
// These instructions flush denormals to zero. The functions are those of operand.h.
#pragma once

#include "cpu/operand.h"

namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME {

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

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME
