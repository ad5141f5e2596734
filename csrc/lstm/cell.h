// The cell: gates -> cell -> hidden state, and the derivatives. Written for any number type V (a scalar or a SIMD
// vector) that has arithmetic operators and functions sigmoid(V) and tanh(V) found by argument or overload.
//
//   c' = f * c_prev + i * g
//   h' = o * tanh(n),   n = c' or the layer norm of c'
#pragma once

#include "lstm/host_device.h"

namespace lstm_fused {

template <class V>
struct Gates {
  V i, f, g, o;
};

template <class V>
LSTM_FUSED_FN V cell_state(const Gates<V>& gates, V c_prev) {
  return gates.f * c_prev + gates.i * gates.g;
}

// Derivatives of the activations, from their outputs.
template <class V>
LSTM_FUSED_FN V d_sigmoid(V y, V d_y) {
  return d_y * y * (1 - y);
}

template <class V>
LSTM_FUSED_FN V d_tanh(V y, V d_y) {
  return d_y * (1 - y * y);
}

// Gradients of the pre-activations i, f, g from d_c' (that of o needs only d_h').
template <class V>
LSTM_FUSED_FN Gates<V> d_cell_gates(const Gates<V>& gates, V c_prev, V d_cell) {
  return {d_sigmoid(gates.i, d_cell * gates.g), d_sigmoid(gates.f, d_cell * c_prev), d_tanh(gates.g, d_cell * gates.i),
          V{}};
}

// Zoneout (Krueger et al. 2016): `keep_previous` is 1 or 0 in training, the rate itself in evaluation.
template <class V>
LSTM_FUSED_FN V zoneout(V value, V previous, V keep_previous) {
  return keep_previous * previous + (1 - keep_previous) * value;
}

}  // namespace lstm_fused
