// The vector types, through the compiler's vector extensions: arithmetic on them is one source for every instruction
// set. Included by the file of an instruction set, which says how many bytes a vector has.
#pragma once

#include <cstdint>

#include "lstm/host_device.h"

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

// 32-bit words in lanes of 64 bits. Whatever the upper halves hold is never looked at: a product takes the lower
// halves. A type of its own, so that the shared mathematics finds these functions.
struct Words {
  typedef uint64_t Lanes __attribute__((vector_size(LSTM_FUSED_VECTOR_BYTES)));
  static constexpr int kLanes = LSTM_FUSED_VECTOR_BYTES / sizeof(uint64_t);
  Lanes lanes;
};

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME
