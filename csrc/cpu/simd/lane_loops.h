// Loads and stores of a part of a vector where no instruction does it: a loop over its lanes.
#pragma once

#include "cpu/simd/vector.h"

namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME {

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

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME
