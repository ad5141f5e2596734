// Random masks on the device; the bits are those of lstm/dropout.h. The seed is read there too: no call waits for it.
#pragma once

#include "cuda/types.h"
#include "lstm/dropout.h"

namespace lstm_fused::cuda {

// A random mask as the kernels draw it. Made on the host: on the device it would be arithmetic in float64, for which
// most GPUs have few units.
template <typename A>
struct Mask {
  bool on = false;         // whether it is drawn, or for zoneout in evaluation, whether it does anything
  uint32_t threshold = 0;  // of the words that are hit
  A value = 0;             // dropout: of what is kept; zoneout: in evaluation, of all
};

template <typename A>
Mask<A> dropout(double rate, bool training) {
  return {training && rate > 0, drop_threshold(rate), static_cast<A>(1 / (1 - rate))};
}

template <typename A>
Mask<A> zoneout(double rate) {
  return {rate > 0, drop_threshold(rate), static_cast<A>(rate)};
}

// Which of units j .. j + V of row b at step t are hit. `words[lane]` is below the threshold with probability `rate`.
template <int V>
__device__ __forceinline__ void draw(uint64_t seed, int64_t stream, MaskUse use, int64_t t, int64_t b, int64_t j,
                                     uint32_t (&words)[V]) {
  static_assert(4 % V == 0, "the units of a thread share one counter");
  uint32_t c[4] = {static_cast<uint32_t>(j / 4), static_cast<uint32_t>(b), static_cast<uint32_t>(t),
                   stream_number(stream, use)};
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < kPhiloxRounds; ++round) {
    philox_round(c[0], c[1], c[2], c[3], key0, key1);
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
#pragma unroll
  for (int lane = 0; lane < V; ++lane) {
    const int64_t word = V == 4 ? lane : j % 4 + lane;  // chosen by hand: an index would put the words into memory
    words[lane] = word == 0 ? c[0] : word == 1 ? c[1] : word == 2 ? c[2] : c[3];
  }
}

// 0, or 1 / (1 - rate).
template <typename A, int V>
__device__ __forceinline__ Lanes<A, V> dropout_mask(uint64_t seed, int64_t stream, MaskUse use, const Mask<A>& of,
                                                    int64_t t, int64_t b, int64_t j) {
  uint32_t words[V];
  draw<V>(seed, stream, use, t, b, j, words);
  Lanes<A, V> mask;
#pragma unroll
  for (int lane = 0; lane < V; ++lane) mask[lane] = words[lane] < of.threshold ? A(0) : of.value;
  return mask;
}

// The weight of the previous value: 1 or 0 in training, the rate in evaluation.
template <typename A, int V>
__device__ __forceinline__ Lanes<A, V> zoneout_mask(uint64_t seed, int64_t stream, MaskUse use, const Mask<A>& of,
                                                    bool training, int64_t t, int64_t b, int64_t j) {
  Lanes<A, V> mask;
  if (!training) {
#pragma unroll
    for (int lane = 0; lane < V; ++lane) mask[lane] = of.value;
    return mask;
  }
  uint32_t words[V];
  draw<V>(seed, stream, use, t, b, j, words);
#pragma unroll
  for (int lane = 0; lane < V; ++lane) mask[lane] = words[lane] < of.threshold ? A(1) : A(0);
  return mask;
}

}  // namespace lstm_fused::cuda
