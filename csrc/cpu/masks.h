// Rows of random masks for the CPU kernels; the bits are those of lstm/dropout.h.
#pragma once

#include "cpu/vec.h"
#include "lstm/dropout.h"
#include "lstm/problem.h"

namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME {

constexpr int64_t kMaskGroup = 64;  // fill_mask writes whole groups

// a[0], b[0], a[1], b[1], ...
LSTM_FUSED_FN void interleave(Words::Lanes a, Words::Lanes b, uint64_t* to) {
  constexpr int L = Words::kLanes;
#if defined(__clang__)
  for (int l = 0; l < L; ++l) to[2 * l] = a[l], to[2 * l + 1] = b[l];
#else
  Words::Lanes first, second;
  for (int l = 0; l < L; ++l) {
    first[l] = l / 2 + l % 2 * L;
    second[l] = L / 2 + l / 2 + l % 2 * L;
  }
  const Words::Lanes halves[2] = {__builtin_shuffle(a, b, first), __builtin_shuffle(a, b, second)};
  std::memcpy(to, halves, sizeof halves);
#endif
}

// mask[h - first] = when_kept or when_dropped for h in first..first+count-1, first a multiple of 64. The buffer holds
// whole groups of 64 values.
template <typename T>
void fill_mask(const LayerOptions& options, MaskUse use, double rate, T when_kept, T when_dropped, int64_t t, int64_t b,
               int64_t count, T* mask, int64_t first = 0) {
  constexpr int L = Words::kLanes, kVectors = kMaskGroup / 4 / L;
  using Lanes = Words::Lanes;
  const uint32_t stream = stream_number(options.stream, use);
  const uint32_t threshold = drop_threshold(rate);
  Lanes lane;
  for (int l = 0; l < L; ++l) lane[l] = l;
  for (int64_t h = 0; h < count; h += kMaskGroup) {
    Words c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      c0[v].lanes = lane + static_cast<uint64_t>((first + h) / 4 + v * L);
      c1[v].lanes = Lanes{} + static_cast<uint64_t>(b);
      c2[v].lanes = Lanes{} + static_cast<uint64_t>(t);
      c3[v].lanes = Lanes{} + stream;
    }
    uint32_t key0 = static_cast<uint32_t>(options.seed), key1 = static_cast<uint32_t>(options.seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) philox_round(c0[v], c1[v], c2[v], c3[v], key0, key1);
      key0 += kPhiloxWeyl0;
      key1 += kPhiloxWeyl1;
    }
    alignas(LSTM_FUSED_VECTOR_BYTES) uint32_t bits[kMaskGroup];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      // The four words of a counter side by side, counter after counter.
      const Lanes low = (c0[v].lanes & 0xFFFFFFFFu) | c1[v].lanes << 32;
      const Lanes high = (c2[v].lanes & 0xFFFFFFFFu) | c3[v].lanes << 32;
      interleave(low, high, reinterpret_cast<uint64_t*>(bits) + 2 * v * L);
    }
    for (int64_t k = 0; k < kMaskGroup; ++k) mask[h + k] = bits[k] < threshold ? when_dropped : when_kept;
  }
}

// A dropout mask: 0, or 1 / (1 - rate).
template <typename T>
void fill_dropout(const LayerOptions& options, MaskUse use, double rate, int64_t t, int64_t b, int64_t count, T* mask) {
  fill_mask<T>(options, use, rate, static_cast<T>(1 / (1 - rate)), T(0), t, b, count, mask);
}

// The weight of the previous value: sampled in training, the rate in evaluation.
template <typename T>
void fill_zoneout(const LayerOptions& options, MaskUse use, double rate, int64_t t, int64_t b, int64_t count, T* mask) {
  if (options.training) {
    fill_mask<T>(options, use, rate, T(0), T(1), t, b, count, mask);
  } else {
    for (int64_t h = 0; h < round_up(count, kMaskGroup); ++h) mask[h] = static_cast<T>(rate);
  }
}

// to = mask * from for rows [first, last) of a matrix of weights; `to` may be `from`.
template <typename T>
void drop_weights(const LayerOptions& options, const T* from, int64_t columns, int64_t first, int64_t last, T* to) {
  const T scale = static_cast<T>(1 / (1 - options.weight_dropout));
  T mask[kMaskGroup];
  for (int64_t row = first; row < last; ++row)
    for (int64_t begin = 0; begin < columns; begin += kMaskGroup) {
      const int64_t count = columns - begin < kMaskGroup ? columns - begin : kMaskGroup;
      fill_mask<T>(options, MaskUse::weight, options.weight_dropout, scale, T(0), 0, row, count, mask, begin);
      for (int64_t k = 0; k < count; ++k) to[row * columns + begin + k] = mask[k] * from[row * columns + begin + k];
    }
}

// The masks of a block of rows: [rows, stride] each, null where the option is off.
template <typename T>
struct BlockMasks {
  T *output, *hidden, *candidate, *zoneout_h, *zoneout_c;
};

// The masks that hold for all steps, of the r-th row of a block (batch index b).
template <typename T>
void fill_locked_masks(const LayerSizes& sizes, const LayerOptions& options, const BlockMasks<T>& masks, int64_t stride,
                       int64_t r, int64_t b) {
  const int64_t P = sizes.projection_size;
  if (masks.hidden)
    fill_dropout(options, MaskUse::hidden, options.recurrent_dropout, 0, b, P, masks.hidden + r * stride);
  if (masks.output && options.variational)
    fill_dropout(options, MaskUse::output, options.dropout, 0, b, P, masks.output + r * stride);
}

// The masks that are fresh at every step t.
template <typename T>
void fill_fresh_masks(const LayerSizes& sizes, const LayerOptions& options, const BlockMasks<T>& masks, int64_t stride,
                      int64_t r, int64_t b, int64_t t) {
  const int64_t H = sizes.hidden_size;
  t += options.first_step;
  if (masks.output && !options.variational)
    fill_dropout(options, MaskUse::output, options.dropout, t, b, sizes.projection_size, masks.output + r * stride);
  if (masks.candidate)
    fill_dropout(options, MaskUse::candidate, options.candidate_dropout, t, b, H, masks.candidate + r * stride);
  if (masks.zoneout_h)
    fill_zoneout(options, MaskUse::zoneout_h, options.zoneout_h, t, b, H, masks.zoneout_h + r * stride);
  if (masks.zoneout_c)
    fill_zoneout(options, MaskUse::zoneout_c, options.zoneout_c, t, b, H, masks.zoneout_c + r * stride);
}

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME
