// AVX2 with FMA: 16 registers of 32 bytes.
#pragma once

#include <immintrin.h>

#define LSTM_FUSED_VECTOR_BYTES 32
#include "cpu/simd/vector.h"

namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME {

constexpr int kVectorRegisters = 16;

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

LSTM_FUSED_FN Vec<float> larger(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm256_max_ps((__m256)a, (__m256)b); }
LSTM_FUSED_FN Vec<double> larger(Vec<double> a, Vec<double> b) {
  return (Vec<double>)_mm256_max_pd((__m256d)a, (__m256d)b);
}
LSTM_FUSED_FN Vec<float> smaller(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm256_min_ps((__m256)a, (__m256)b); }
LSTM_FUSED_FN Vec<double> smaller(Vec<double> a, Vec<double> b) {
  return (Vec<double>)_mm256_min_pd((__m256d)a, (__m256d)b);
}

LSTM_FUSED_FN Words wide_product(Words words, uint32_t multiplier) {
  const Words::Lanes multipliers = Words::Lanes{} + multiplier;
  return {(Words::Lanes)_mm256_mul_epu32((__m256i)words.lanes, (__m256i)multipliers)};
}

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME
