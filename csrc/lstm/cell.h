// The cell: gates -> cell -> hidden state, and the derivatives. Written for any number type V (a scalar or a SIMD
// vector) that has arithmetic operators; the activations are a backend's: Math::sigmoid(V) and Math::tanh(V).
//
//   c' = f * c_prev + i * g
//   h' = o * tanh(n),   n = c' or the layer norm of c'
//
// With peepholes p, dropout of the candidate m, and open gates (`CellExtras`):
//
//   i = sigmoid(z_i + p_i * c_prev),  f = sigmoid(z_f + p_f * c_prev),  g = tanh(z_g)       an open gate is 1
//   c' = f * c_prev + i * (m * g)
//   o = sigmoid(z_o + p_o * c')
#pragma once

#include <cstdint>

#include "lstm/host_device.h"

namespace lstm_fused {

template <class V>
struct Gates {
  V i, f, g, o;
};

// The activations, from the pre-activations.
template <class Math, class V>
LSTM_FUSED_FN Gates<V> activate(const Gates<V>& z) {
  return {Math::sigmoid(z.i), Math::sigmoid(z.f), Math::tanh(z.g), Math::sigmoid(z.o)};
}

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

// Bits of LayerOptions::open_gates.
enum OpenGate : int64_t { open_i = 1, open_f = 2, open_o = 4 };

// What the options that act on single units mean for the units of a V.
template <class V>
struct CellExtras {
  bool peephole;
  V weight_ci, weight_cf, weight_co;  // peepholes; not read without
  V mask;                             // of the candidate: 0 or 1 / (1 - rate); 1 without dropout
  int64_t open_gates;
};

template <class Math, class V>
LSTM_FUSED_FN V gate_with_extras(const CellExtras<V>& extras, OpenGate gate, V z, V weight, V c) {
  if (extras.open_gates & gate) return V{} + 1;
  return Math::sigmoid(extras.peephole ? z + weight * c : z);
}

// c' from the activations.
template <class V>
LSTM_FUSED_FN V cell_with_mask(const CellExtras<V>& extras, const Gates<V>& gates, V c_prev) {
  return gates.f * c_prev + gates.i * (extras.mask * gates.g);
}

// c' and, in `gates`, the activations, from the pre-activations z. The candidate is stored before its dropout.
template <class Math, class V>
LSTM_FUSED_FN V cell_with_extras(const CellExtras<V>& extras, const Gates<V>& z, V c_prev, Gates<V>& gates) {
  gates.i = gate_with_extras<Math>(extras, open_i, z.i, extras.weight_ci, c_prev);
  gates.f = gate_with_extras<Math>(extras, open_f, z.f, extras.weight_cf, c_prev);
  gates.g = Math::tanh(z.g);
  const V cell = cell_with_mask(extras, gates, c_prev);
  gates.o = gate_with_extras<Math>(extras, open_o, z.o, extras.weight_co, cell);
  return cell;
}

// Gradient of the pre-activation o, from d_h'; tanh_n = tanh(n). It belongs to d_c' too: `d_cell_of_output_gate`.
template <class V>
LSTM_FUSED_FN V d_output_gate(const CellExtras<V>& extras, V o, V d_h, V tanh_n) {
  return extras.open_gates & open_o ? V{} : d_sigmoid(o, d_h * tanh_n);
}

template <class V>
LSTM_FUSED_FN V d_cell_of_output_gate(const CellExtras<V>& extras, V d_z_o) {
  return extras.peephole ? extras.weight_co * d_z_o : V{};
}

// Gradients of the pre-activations i, f, g and, in `d_c_prev`, of c_prev, from the whole of d_c'.
template <class V>
LSTM_FUSED_FN Gates<V> d_cell_with_extras(const CellExtras<V>& extras, const Gates<V>& gates, V c_prev, V d_cell,
                                          V& d_c_prev) {
  const V d_i = d_sigmoid(gates.i, d_cell * (extras.mask * gates.g)), d_f = d_sigmoid(gates.f, d_cell * c_prev);
  const Gates<V> d_z = {extras.open_gates & open_i ? V{} : d_i, extras.open_gates & open_f ? V{} : d_f,
                        d_tanh(gates.g, d_cell * gates.i * extras.mask), V{}};
  d_c_prev = gates.f * d_cell;
  if (extras.peephole) d_c_prev += extras.weight_ci * d_z.i + extras.weight_cf * d_z.f;
  return d_z;
}

// Zoneout (Krueger et al. 2016): `keep_previous` is 1 or 0 in training, the rate itself in evaluation.
template <class V>
LSTM_FUSED_FN V zoneout(V value, V previous, V keep_previous) {
  return keep_previous * previous + (1 - keep_previous) * value;
}

}  // namespace lstm_fused
