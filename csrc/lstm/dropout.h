// Random masks as a pure function of a position, so that none is stored and every backend draws the same bits.
//
//   bits(seed, stream, t, b, h) = word (h mod 4) of Philox4x32-10 with
//       key     = (seed mod 2^32, seed div 2^32)
//       counter = (h div 4, b, t, stream)
//
// A unit is dropped (or zoned out) when bits < floor(p * 2^32). A mask that is locked over time uses t = 0; that of
// weight_hh [4H, P] uses t = 0 too, with b its row and h its column.
// Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <cstdint>

#include "lstm/host_device.h"

namespace lstm_fused {

// What a mask is for. The stream number of an op call is 8 * (layer * directions + direction) + use.
enum class MaskUse : uint32_t { output = 0, hidden = 1, candidate = 2, zoneout_h = 3, zoneout_c = 4, weight = 5 };

LSTM_FUSED_FN uint32_t stream_number(int64_t layer_and_direction, MaskUse use) {
  return static_cast<uint32_t>(8 * layer_and_direction) + static_cast<uint32_t>(use);
}

LSTM_FUSED_FN uint32_t drop_threshold(double rate) { return static_cast<uint32_t>(rate * 4294967296.0); }

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

// The product of a word and a multiplier, and its halves; overloaded for vectors of words.
LSTM_FUSED_FN uint64_t wide_product(uint32_t word, uint32_t multiplier) {
  return static_cast<uint64_t>(word) * multiplier;
}
LSTM_FUSED_FN uint32_t high_half(uint64_t product) { return static_cast<uint32_t>(product >> 32); }
LSTM_FUSED_FN uint32_t low_half(uint64_t product) { return static_cast<uint32_t>(product); }

// One round on the counter (c0, c1, c2, c3); the caller adds the Weyl constants to the key between rounds.
template <class W>
LSTM_FUSED_FN void philox_round(W& c0, W& c1, W& c2, W& c3, uint32_t key0, uint32_t key1) {
  const auto product0 = wide_product(c0, kPhiloxMultiplier0);
  const auto product1 = wide_product(c2, kPhiloxMultiplier1);
  c0 = high_half(product1) ^ c1 ^ key0;
  c2 = high_half(product0) ^ c3 ^ key1;
  c1 = low_half(product1);
  c3 = low_half(product0);
}

}  // namespace lstm_fused
