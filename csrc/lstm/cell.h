// The cell: gates -> cell -> hidden state, and the derivatives. Written for any number type V (a scalar or a SIMD
// vector) that has arithmetic operators; the activations are a backend's: Math::sigmoid(V) and Math::tanh(V).
// docs/equations.md has the equations, with the derivation of the gradients.
//
//   i = sigmoid(z_i + p_i * c_prev),  f = sigmoid(z_f + p_f * c_prev),  g = tanh(z_g)       an open gate is 1
//   c' = f * c_prev + i * (m_g * g)
//   o = sigmoid(z_o + p_o * c')
//   h' = o * tanh(n),   n = c' or the layer norm of c'
//
// with p the peepholes, and m_g the dropout mask of the candidate; for sigmoid and tanh there are others.
#pragma once

#include <cstdint>

#include "lstm/host_device.h"
#include "lstm/op_table.h"

namespace lstm_fused {

template <class V>
struct Gates {
  V i, f, g, o;
};

// What the choices of op_table.h mean; of open_gates the bits.
enum Activation : int64_t { tanh_activation, relu_activation };
enum RecurrentActivation : int64_t { sigmoid_activation, hard_sigmoid_activation };
enum OpenGate : int64_t { open_i = 1, open_f = 2, open_o = 4 };

// Which equations the cell has, where there is a choice; 0 is the default of each. Bytes, not int64_t: CUDA kernels at
// their limit of registers spill some for wider ones.
#define LSTM_FUSED_FIELD(name, ...) uint8_t name = 0;
struct CellChoices {
  LSTM_FUSED_CELL_CHOICES(LSTM_FUSED_FIELD)
};
#undef LSTM_FUSED_FIELD

// The same with all at their defaults, which the compiler sees.
#define LSTM_FUSED_CONSTANT(name, ...) static constexpr uint8_t name = 0;
struct DefaultChoices {
  LSTM_FUSED_CELL_CHOICES(LSTM_FUSED_CONSTANT)
};
#undef LSTM_FUSED_CONSTANT

// The options that act on single units, for the units of a V.
template <class V>
struct CellOptions : CellChoices {
  bool peephole = false;
  V weight_ci{}, weight_cf{}, weight_co{};  // peepholes; not read without
  V mask = V{} + 1;                         // of the candidate: 0 or 1 / (1 - rate); 1 without dropout
};

// With these the formulas below, which stand once for both, compile to the plain equations.
template <class V>
struct DefaultCellOptions : DefaultChoices {
  static constexpr bool peephole = false;
  V weight_ci{}, weight_cf{}, weight_co{};
  V mask = V{} + 1;
};

// The activation of the candidate and of the output, by default tanh, and that of the gates, by default the sigmoid;
// then the derivatives of both, from their outputs. NaN stays NaN. The hard sigmoid is clip(x / 5 + 1 / 2, 0, 1).
template <class Math, class Options, class V>
LSTM_FUSED_FN V activation(const Options& options, V x) {
  if (options.activation == relu_activation) return x < 0 ? V{} : x;
  return Math::tanh(x);
}
template <class Math, class Options, class V>
LSTM_FUSED_FN V gate_activation(const Options& options, V x) {
  if (options.recurrent_activation != hard_sigmoid_activation) return Math::sigmoid(x);
  const V one = V{} + 1, y = x * (one / 5) + one / 2;
  return y < 0 ? V{} : y > 1 ? one : y;
}
template <class Options, class V>
LSTM_FUSED_FN V d_activation(const Options& options, V y, V d_y) {
  if (options.activation == relu_activation) return y <= 0 ? V{} : d_y;
  return d_y * (1 - y * y);
}
template <class Options, class V>
LSTM_FUSED_FN V d_gate_activation(const Options& options, V y, V d_y) {
  if (options.recurrent_activation != hard_sigmoid_activation) return d_y * y * (1 - y);
  return (y <= 0) | (y >= 1) ? V{} : d_y * ((V{} + 1) / 5);
}

template <class Math, class Options, class V>
LSTM_FUSED_FN V gate_of(const Options& options, OpenGate gate, V z, V weight, V c) {
  if (options.open_gates & gate) return V{} + 1;
  return gate_activation<Math>(options, options.peephole ? z + weight * c : z);
}

// c' from the activations. The candidate among them is stored before its dropout.
template <class Options, class V>
LSTM_FUSED_FN V cell_state(const Options& options, const Gates<V>& gates, V c_prev) {
  return gates.f * c_prev + gates.i * (options.mask * gates.g);
}

// c' and, in `gates`, the activations, from the pre-activations z.
template <class Math, class Options, class V>
LSTM_FUSED_FN V gates_and_cell(const Options& options, const Gates<V>& z, V c_prev, Gates<V>& gates) {
  gates.i = gate_of<Math>(options, open_i, z.i, options.weight_ci, c_prev);
  gates.f = gate_of<Math>(options, open_f, z.f, options.weight_cf, c_prev);
  gates.g = activation<Math>(options, z.g);
  const V cell = cell_state(options, gates, c_prev);
  gates.o = gate_of<Math>(options, open_o, z.o, options.weight_co, cell);
  return cell;
}

// Gradient of the pre-activation o, from d_h'; active_n: the activation of n. It belongs to d_c' too:
// `plus_d_output_gate`.
template <class Options, class V>
LSTM_FUSED_FN V d_output_gate(const Options& options, V o, V d_h, V active_n) {
  return options.open_gates & open_o ? V{} : d_gate_activation(options, o, d_h * active_n);
}

// d_c' with what comes back through the peephole of the output gate.
template <class Options, class V>
LSTM_FUSED_FN V plus_d_output_gate(const Options& options, V d_cell, V d_z_o) {
  return options.peephole ? d_cell + options.weight_co * d_z_o : d_cell;
}

// Gradients of the pre-activations i, f, g and, in `d_c_prev`, of c_prev, from the whole of d_c'. zoneout_carry: what
// zoneout passes from c_t to c_prev.
template <class Options, class V>
LSTM_FUSED_FN Gates<V> d_gates(const Options& options, const Gates<V>& gates, V c_prev, V d_cell, V zoneout_carry,
                               V& d_c_prev) {
  const V d_i = d_gate_activation(options, gates.i, d_cell * (options.mask * gates.g));
  const V d_f = d_gate_activation(options, gates.f, d_cell * c_prev);
  const Gates<V> d_z = {options.open_gates & open_i ? V{} : d_i, options.open_gates & open_f ? V{} : d_f,
                        d_activation(options, gates.g, d_cell * gates.i * options.mask), V{}};
  d_c_prev = gates.f * d_cell + zoneout_carry;
  if (options.peephole) d_c_prev += options.weight_ci * d_z.i + options.weight_cf * d_z.f;
  return d_z;
}

// Zoneout (Krueger et al. 2016): `keep_previous` is 1 or 0 in training, the rate itself in evaluation.
template <class V>
LSTM_FUSED_FN V zoneout(V value, V previous, V keep_previous) {
  return keep_previous * previous + (1 - keep_previous) * value;
}

}  // namespace lstm_fused
