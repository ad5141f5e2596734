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

// One round on the counter (c0, c1, c2, c3); the caller adds the Weyl constants to the key between rounds.
LSTM_FUSED_FN void philox_round(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t key0, uint32_t key1) {
  const uint64_t product0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c0;
  const uint64_t product1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c2;
  const uint32_t next0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
  const uint32_t next2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
  c1 = static_cast<uint32_t>(product1);
  c3 = static_cast<uint32_t>(product0);
  c0 = next0;
  c2 = next2;
}

}  // namespace lstm_fused
