// sigmoid and tanh of SIMD vectors: branch-free, defined for every input, NaN stays NaN.
//
//   n = round(x / ln 2),  r = x - n * ln 2,  |r| <= ln 2 / 2
//   e^r - 1 = r + r^2 * P(r)          P: a minimax polynomial (our own Remez fit)
//   e^x     = 2^n * (1 + (e^r - 1))
#pragma once

#include "cpu/vec.h"

namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME {

template <typename T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float log2e = 1.44269504f;
  static constexpr float round = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;  // n * ln2_high is exact
  static constexpr float lowest = -87.33f, highest = 88.73f;                  // 2^n stays normal; e^highest is infinite
  static constexpr int mantissa_bits = 23, bias = 127;
  static constexpr float polynomial[] = {0.50000000134697841f,   0.16666666756474335f,   0.041666464898970161f,
                                         0.0083332860022666012f, 0.0013933652192531016f, 0.00019907587726629705f};
};

template <>
struct ExpConstants<double> {
  static constexpr double log2e = 1.4426950408889634;
  static constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double ln2_high = 0.693147180369123816490, ln2_low = 1.90821492927058770002e-10;
  static constexpr double lowest = -708.39, highest = 709.79;
  static constexpr int mantissa_bits = 52, bias = 1023;
  static constexpr double polynomial[] = {0.5,
                                          0.16666666666666670991,
                                          0.0416666666666666838,
                                          0.0083333333333261346749,
                                          0.0013888888888874395231,
                                          0.0001984126987482195821,
                                          0.000024801587347346783314,
                                          2.7557255398741948415e-6,
                                          2.7557252905997572236e-7,
                                          2.5105217543350840624e-8,
                                          2.0921591355558058493e-9};
};

// The two halves of e^x: 2^n and e^r - 1.
template <typename T>
struct ExpParts {
  Vec<T> scale, fraction;
};

template <typename T>
LSTM_FUSED_FN ExpParts<T> exp_parts(Vec<T> x) {
  using C = ExpConstants<T>;
  using Bits = typename VecTraits<T>::Bits;
  const Vec<T> shifted = x * C::log2e + C::round;
  const Vec<T> n = shifted - C::round;
  const Vec<T> r = (x - n * C::ln2_high) - n * C::ln2_low;
  constexpr int degree = sizeof(C::polynomial) / sizeof(T) - 1;
  Vec<T> p = broadcast<T>(C::polynomial[degree]);
#pragma GCC unroll 16
  for (int k = degree - 1; k >= 0; --k) p = p * r + C::polynomial[k];
  using Integer = decltype(Bits{}[0] + 0);
  const Bits exponent = ((Bits)shifted << C::mantissa_bits) + (static_cast<Integer>(C::bias) << C::mantissa_bits);
  return {(Vec<T>)exponent, r * r * p + r};
}

template <typename T>
LSTM_FUSED_FN Vec<T> sigmoid_vec(Vec<T> x) {
  using C = ExpConstants<T>;
  const ExpParts<T> e = exp_parts<T>(at_most<T>(at_least<T>(-x, C::lowest), C::highest));
  return 1 / (1 + (1 + e.fraction) * e.scale);
}

template <typename T>
LSTM_FUSED_FN Vec<T> tanh_vec(Vec<T> x) {
  using C = ExpConstants<T>;
  using Bits = typename VecTraits<T>::Bits;
  const Bits sign = (Bits)x & (Bits)broadcast<T>(-T(0));
  const Vec<T> magnitude = (Vec<T>)((Bits)x ^ sign);
  const ExpParts<T> e = exp_parts<T>(at_least<T>(-2 * magnitude, C::lowest));
  // (1 - e^y) / (1 + e^y), each from the parts: a difference of rounded values would cost another unit in the last
  // place.
  const Vec<T> t = -(e.scale * e.fraction + (e.scale - 1)) / (e.scale * e.fraction + (e.scale + 1));
  return (Vec<T>)((Bits)t | sign);
}

LSTM_FUSED_FN Vec<float> sigmoid(Vec<float> x) { return sigmoid_vec<float>(x); }
LSTM_FUSED_FN Vec<double> sigmoid(Vec<double> x) { return sigmoid_vec<double>(x); }
LSTM_FUSED_FN Vec<float> tanh(Vec<float> x) { return tanh_vec<float>(x); }
LSTM_FUSED_FN Vec<double> tanh(Vec<double> x) { return tanh_vec<double>(x); }

// The names that the shared mathematics calls.
struct VecMath {
  template <class V>
  LSTM_FUSED_INLINE static V sigmoid(V x) {
    return LSTM_FUSED_ISA_NAME::sigmoid(x);
  }
  template <class V>
  LSTM_FUSED_INLINE static V tanh(V x) {
    return LSTM_FUSED_ISA_NAME::tanh(x);
  }
};

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME
