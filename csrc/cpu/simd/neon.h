// NEON, which every 64-bit Arm CPU has: 32 registers of 16 bytes. The compiler's vector extensions find its
// instructions, so there are no intrinsics; this is also what any other CPU with vectors of 16 bytes runs.
#pragma once

#define LSTM_FUSED_VECTOR_BYTES 16
#include "cpu/simd/lane_loops.h"

namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME {

constexpr int kVectorRegisters = 32;

template <class V>
LSTM_FUSED_FN V larger(V a, V b) {
  return a > b ? a : b;
}
template <class V>
LSTM_FUSED_FN V smaller(V a, V b) {
  return a < b ? a : b;
}

LSTM_FUSED_FN Words wide_product(Words words, uint32_t multiplier) {
  const Words::Lanes multipliers = Words::Lanes{} + multiplier;
  return {(words.lanes & 0xFFFFFFFFu) * multipliers};
}

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME
