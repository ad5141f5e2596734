// What one call computes: sizes, options and pointers, each with its shape. Plain data, shared by every backend.
#pragma once

#include <cstdint>

#include "lstm/host_device.h"

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

struct LayerOptions {
  bool reverse = false;  // from the last real step to the first
  LayerNorm layer_norm = LayerNorm::none;
  bool projection = false;       // weight_hr is given
  bool peephole = false;         // weight_ci, weight_cf and weight_co are given
  bool training = true;          // dropout and sampled zoneout; otherwise no dropout and zoneout's expected value
  bool variational = false;      // the output mask is locked over time
  double dropout = 0;            // of the output
  double recurrent_dropout = 0;  // of the hidden state, locked over time
  double candidate_dropout = 0;  // of g, fresh at every step
  double weight_dropout = 0;     // of weight_hh, one mask a call
  double zoneout_h = 0;
  double zoneout_c = 0;
  int64_t open_gates = 0;  // gates that are 1: bits of OpenGate in cell.h
  double eps = 1e-5;
  bool bfloat16 = false;  // products may round what they multiply to it: all that a call takes is bfloat16
  uint64_t seed = 0;
  int64_t stream = 0;      // layer * directions + direction
  int64_t first_step = 0;  // the t of the first step, as the masks see it (a cell called step by step)
  int64_t recompute = 0;   // steps of a segment, of which the backward pass computes the gates again; 0: none
};

LSTM_FUSED_FN bool has_layer_norm(const LayerOptions& options) { return options.layer_norm != LayerNorm::none; }

// Whether a step has more to it than the plain equations and those of "ba2016".
LSTM_FUSED_FN bool has_extras(const LayerOptions& options) {
  return options.layer_norm == LayerNorm::carry || options.projection || options.peephole ||
         options.candidate_dropout > 0 || options.open_gates != 0;
}

// Segments of `recompute` steps, counted in the order in which they run; the last may have fewer.
LSTM_FUSED_FN int64_t segments(const LayerSizes& sizes, const LayerOptions& options) {
  return sizes.steps / options.recompute + (sizes.steps % options.recompute != 0);
}

template <typename T>
struct LayerInputs {
  const T* input;          // [T, B, I]
  const T* h_0;            // [B, P]
  const T* c_0;            // [B, H]
  const T* weight_ih;      // [4H, I]
  const T* weight_hh;      // [4H, P]
  const T* bias_ih;        // [4H] or null; of "carry" bias_ln_ih: it is added in the same place
  const T* bias_hh;        // [4H] or null; of "carry" bias_ln_hh
  const T* weight_ln_ih;   // [4H], layer norm only, like the next three
  const T* weight_ln_hh;   // [4H]
  const T* weight_ln_c;    // [H]
  const T* bias_ln_c;      // [H]
  const T* weight_hr;      // [P, H], projection only
  const T* weight_ci;      // [H], peepholes only, like the next two
  const T* weight_cf;      // [H]
  const T* weight_co;      // [H]
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

template <typename T>
struct LayerGradients {
  const T* d_output;  // [T, B, P]
  const T* d_h_n;     // [B, P]
  const T* d_c_n;     // [B, H]
  T* d_input;         // [T, B, I] or null: not wanted
  T* d_h_0;           // [B, P]
  T* d_c_0;           // [B, H]
  T* d_weight_ih;     // [4H, I] or null: not wanted
  T* d_weight_hh;     // [4H, P] or null: not wanted
  T* d_bias;          // [4H], the gradient of either bias, and of either bias of a norm
  T* d_weight_ln_ih;  // [4H], layer norm only, like the next three
  T* d_weight_ln_hh;  // [4H]
  T* d_weight_ln_c;   // [H]
  T* d_bias_ln_c;     // [H]
  T* d_weight_hr;     // [P, H], projection only
  T* d_weight_ci;     // [H], peepholes only, like the next two
  T* d_weight_cf;     // [H]
  T* d_weight_co;     // [H]
};

}  // namespace lstm_fused
