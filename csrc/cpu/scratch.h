// Scratch memory of a task: laid out by the same code that uses it. With a null base it only counts the bytes.
#pragma once

#include "cpu/masks.h"
#include "cpu/vec.h"

namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME {

struct Arena {
  char* base;
  int64_t used;

  template <typename U>
  LSTM_FUSED_INLINE U* take(int64_t count) {
    U* p = base ? reinterpret_cast<U*>(base + used) : nullptr;
    used += round_up(count * static_cast<int64_t>(sizeof(U)), 64);
    return p;
  }
};

template <typename T>
LSTM_FUSED_FN BlockMasks<T> take_masks(Arena& arena, const LayerOptions& options, int64_t rows, int64_t stride) {
  BlockMasks<T> masks{};
  if (options.dropout > 0) masks.output = arena.take<T>(rows * stride);
  if (options.recurrent_dropout > 0) masks.hidden = arena.take<T>(rows * stride);
  if (options.candidate_dropout > 0) masks.candidate = arena.take<T>(rows * stride);
  if (options.zoneout_h > 0) masks.zoneout_h = arena.take<T>(rows * stride);
  if (options.zoneout_c > 0) masks.zoneout_c = arena.take<T>(rows * stride);
  return masks;
}

// Rows of scratch are padded to whole vectors and whole groups of a mask.
LSTM_FUSED_FN int64_t padded(int64_t hidden_size) { return round_up(hidden_size, kMaskGroup); }

// Of rows that hold h or c.
LSTM_FUSED_FN int64_t scratch_stride(const LayerSizes& sizes) {
  return padded(sizes.hidden_size > sizes.projection_size ? sizes.hidden_size : sizes.projection_size);
}

// The t of the step that the r-th row runs as its s-th.
LSTM_FUSED_FN int64_t time_of(const LayerOptions& options, int64_t row_steps, int64_t s) {
  return options.reverse ? row_steps - 1 - s : s;
}

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME
