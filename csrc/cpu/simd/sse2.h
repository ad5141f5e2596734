// SSE2, which every x86-64 CPU has: 16 registers of 16 bytes.
#pragma once

#include <immintrin.h>

#define LSTM_FUSED_VECTOR_BYTES 16
#include "cpu/simd/vector.h"

namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME {

constexpr int kVectorRegisters = 16;

// A loop over lanes: there is no load or store of a part of a vector.
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

LSTM_FUSED_FN Vec<float> larger(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm_max_ps((__m128)a, (__m128)b); }
LSTM_FUSED_FN Vec<double> larger(Vec<double> a, Vec<double> b) {
  return (Vec<double>)_mm_max_pd((__m128d)a, (__m128d)b);
}
LSTM_FUSED_FN Vec<float> smaller(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm_min_ps((__m128)a, (__m128)b); }
LSTM_FUSED_FN Vec<double> smaller(Vec<double> a, Vec<double> b) {
  return (Vec<double>)_mm_min_pd((__m128d)a, (__m128d)b);
}

LSTM_FUSED_FN Words wide_product(Words words, uint32_t multiplier) {
  const Words::Lanes multipliers = Words::Lanes{} + multiplier;
  return {(Words::Lanes)_mm_mul_epu32((__m128i)words.lanes, (__m128i)multipliers)};
}

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME
