// What one call computes: sizes, options and pointers, each with its shape. Plain data, shared by every backend.
#pragma once

#include <cstdint>

#include "lstm/cell.h"
#include "lstm/host_device.h"
#include "lstm/op_table.h"

namespace lstm_fused {

struct LayerSizes {
  int64_t steps;            // T
  int64_t batch;            // B
  int64_t input_size;       // I
  int64_t hidden_size;      // H
  int64_t projection_size;  // P, the size of h: H without a projection
};

// "ba2016" carries the raw c', "carry" its layer norm.
enum class LayerNorm { none, ba2016, carry };

#define LSTM_FUSED_RATE_FIELD(name) double name = 0;
#define LSTM_FUSED_COUNT_FIELD(name, ...) int64_t name = 0;
#define LSTM_FUSED_FLAG_FIELD(name, value) bool name = value;
#define LSTM_FUSED_REAL_FIELD(name, value) double name = value;
struct LayerOptions {
  LSTM_FUSED_LAYER_OPTIONS(LSTM_FUSED_RATE_FIELD, LSTM_FUSED_COUNT_FIELD, LSTM_FUSED_FLAG_FIELD, LSTM_FUSED_REAL_FIELD)
  // What follows from the tensors of a call.
  LayerNorm layer_norm = LayerNorm::none;
  bool projection = false;  // weight_hr is given
  bool peephole = false;    // weight_ci, weight_cf and weight_co are given
  bool bfloat16 = false;    // products may round what they multiply to it: all that a call takes is bfloat16
  uint64_t seed = 0;
  int64_t first_step = 0;  // the t of the first step, as the masks see it (a cell called step by step)
};
#undef LSTM_FUSED_RATE_FIELD
#undef LSTM_FUSED_COUNT_FIELD
#undef LSTM_FUSED_FLAG_FIELD
#undef LSTM_FUSED_REAL_FIELD

LSTM_FUSED_FN bool has_layer_norm(const LayerOptions& options) { return options.layer_norm != LayerNorm::none; }

// The choices of the cell's equations among the options.
LSTM_FUSED_FN CellChoices cell_choices(const LayerOptions& options) {
#define LSTM_FUSED_CHOICE(name, ...) static_cast<uint8_t>(options.name),
  return {LSTM_FUSED_CELL_CHOICES(LSTM_FUSED_CHOICE)};
#undef LSTM_FUSED_CHOICE
}

#define LSTM_FUSED_OR_CHOSEN(name, ...) || options.name != 0
// Whether a step has more to it than the plain equations and those of "ba2016".
LSTM_FUSED_FN bool has_cell_options(const LayerOptions& options) {
  return options.layer_norm == LayerNorm::carry || options.projection || options.peephole ||
         options.candidate_dropout > 0 LSTM_FUSED_CELL_CHOICES(LSTM_FUSED_OR_CHOSEN);
}
#undef LSTM_FUSED_OR_CHOSEN

// Segments of `recompute` steps, counted in the order in which they run; the last may have fewer.
LSTM_FUSED_FN int64_t segments(const LayerSizes& sizes, const LayerOptions& options) {
  return sizes.steps / options.recompute + (sizes.steps % options.recompute != 0);
}

// Each null where it is not given. In the place of the biases those that "carry" adds there.
template <typename T>
struct LayerInputs {
  const T* input;  // [T, B, I]
#define LSTM_FUSED_POINTER(name, ...) const T* name;
  LSTM_FUSED_STATE(LSTM_FUSED_POINTER)
  LSTM_FUSED_WEIGHTS(LSTM_FUSED_POINTER, LSTM_FUSED_POINTER, LSTM_FUSED_NONE)
#undef LSTM_FUSED_POINTER
  const int64_t* lengths;  // [B] or null: every row has T steps
  const bool* reset;       // [T, B] or null: the state is zero before that step
};

// What the forward pass keeps for the backward pass. All null when nothing is differentiated. With `recompute` the
// states between segments alone, those of a row that has ended too: hidden [segments + 1, B, P], cells likewise.
template <typename T>
struct LayerSaved {
  T* hidden;     // [T, B, P] h_t; null where there is no output dropout, and then it is the output itself
  T* cells;      // [T, B, H] c_t
  T* gates;      // [T, B, 4H] activations; with layer norm the raw W_ih x
  T* recurrent;  // [T, B, 4H] the raw W_hh h~; layer norm only
  T* stats;      // [T, B, 6] mean and rstd of W_ih x, of W_hh h~ and of c'; layer norm only
};

template <typename T>
struct LayerOutputs {
  T* output;  // [T, B, P]
  T* h_n;     // [B, P]
  T* c_n;     // [B, H]
  LayerSaved<T> saved;
};

// From the gradients of the results to those of the arguments, each null where it is not wanted or not there.
template <typename T>
struct LayerGradients {
  const T* d_output;  // [T, B, P]
  const T* d_h_n;     // [B, P]
  const T* d_c_n;     // [B, H]
  T* d_input;         // [T, B, I]
#define LSTM_FUSED_POINTER(name, ...) T* name;
  LSTM_FUSED_GRADIENTS(LSTM_FUSED_POINTER)
#undef LSTM_FUSED_POINTER
};

}  // namespace lstm_fused
