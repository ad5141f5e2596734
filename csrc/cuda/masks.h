// Random masks on the device; the bits are those of lstm/dropout.h. The seed is read there too: no call waits for it.
#pragma once

#include "cuda/types.h"
#include "lstm/dropout.h"

namespace lstm_fused::cuda {

// Which of units j .. j + V of row b at step t are hit. `words[lane]` is below the threshold with probability `rate`.
template <int V>
__device__ __forceinline__ void draw(const int64_t* seed, int64_t stream, MaskUse use, int64_t t, int64_t b, int64_t j,
                                     uint32_t (&words)[V]) {
  static_assert(4 % V == 0, "the units of a thread share one counter");
  uint32_t c[4] = {static_cast<uint32_t>(j / 4), static_cast<uint32_t>(b), static_cast<uint32_t>(t),
                   stream_number(stream, use)};
  const uint64_t key = static_cast<uint64_t>(*seed);
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
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
__device__ __forceinline__ Lanes<A, V> dropout_mask(const int64_t* seed, int64_t stream, MaskUse use, double rate,
                                                    int64_t t, int64_t b, int64_t j) {
  uint32_t words[V];
  draw<V>(seed, stream, use, t, b, j, words);
  const uint32_t threshold = drop_threshold(rate);
  const A kept = static_cast<A>(1 / (1 - rate));
  Lanes<A, V> mask;
#pragma unroll
  for (int lane = 0; lane < V; ++lane) mask[lane] = words[lane] < threshold ? A(0) : kept;
  return mask;
}

// The weight of the previous value: 1 or 0 in training, the rate in evaluation.
template <typename A, int V>
__device__ __forceinline__ Lanes<A, V> zoneout_mask(const int64_t* seed, int64_t stream, MaskUse use, double rate,
                                                    bool training, int64_t t, int64_t b, int64_t j) {
  Lanes<A, V> mask;
  if (!training) {
#pragma unroll
    for (int lane = 0; lane < V; ++lane) mask[lane] = static_cast<A>(rate);
    return mask;
  }
  uint32_t words[V];
  draw<V>(seed, stream, use, t, b, j, words);
  const uint32_t threshold = drop_threshold(rate);
#pragma unroll
  for (int lane = 0; lane < V; ++lane) mask[lane] = words[lane] < threshold ? A(1) : A(0);
  return mask;
}

}  // namespace lstm_fused::cuda
