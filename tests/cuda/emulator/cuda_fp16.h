// __half for the CUDA emulator: storage, and conversions that round to the nearest, ties to even.
#pragma once

#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};

inline float __half2float(__half x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  if (exponent == 0) {  // zero and the subnormal numbers
    const float value = std::ldexp(static_cast<float>(fraction), -24);
    return sign ? -value : value;
  }
  const uint32_t bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline __half __float2half_rn(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float size = std::fabs(x);
  const auto half = [sign](uint32_t bits) { return __half{static_cast<uint16_t>(sign | bits)}; };
  if (size == 0) return half(0);
  if (std::isnan(x)) return half(0x7fff);
  if (size >= 65520) return half(0x7c00);
  int exponent;
  std::frexp(size, &exponent);  // size = 0.5..1 * 2^exponent
  const int shift = std::max(exponent - 11, -24);
  const auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, -shift)));  // up to 2048: the next exponent
  return half((static_cast<uint32_t>(shift + 24) << 10) + steps);
}
