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

// Operands that are numbers. Those of pairs, by the same names: simd/avx512_bf16.h.

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

// A row as operands along it: the row itself, or in the buffer from `offset` on (the buffer of numbers is null).
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

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME

#if defined(__AVX512BF16__)
#include "cpu/simd/avx512_bf16.h"
#endif
