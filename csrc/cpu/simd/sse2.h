// SSE2, which every x86-64 CPU has: 16 registers of 16 bytes.
#pragma once

#include <immintrin.h>

#define LSTM_FUSED_VECTOR_BYTES 16
#include "cpu/simd/lane_loops.h"

namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME {

constexpr int kVectorRegisters = 16;

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
