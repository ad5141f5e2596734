// AVX-512: 32 registers of 64 bytes.
#pragma once

#include <immintrin.h>

#define LSTM_FUSED_VECTOR_BYTES 64
#include "cpu/simd/vector.h"

namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME {

constexpr int kVectorRegisters = 32;

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

LSTM_FUSED_FN Vec<float> larger(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm512_max_ps((__m512)a, (__m512)b); }
LSTM_FUSED_FN Vec<double> larger(Vec<double> a, Vec<double> b) {
  return (Vec<double>)_mm512_max_pd((__m512d)a, (__m512d)b);
}
LSTM_FUSED_FN Vec<float> smaller(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm512_min_ps((__m512)a, (__m512)b); }
LSTM_FUSED_FN Vec<double> smaller(Vec<double> a, Vec<double> b) {
  return (Vec<double>)_mm512_min_pd((__m512d)a, (__m512d)b);
}

LSTM_FUSED_FN Words wide_product(Words words, uint32_t multiplier) {
  const Words::Lanes multipliers = Words::Lanes{} + multiplier;
  return {(Words::Lanes)_mm512_mul_epu32((__m512i)words.lanes, (__m512i)multipliers)};
}

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME
