// What every op takes and gives, and nothing else. Shapes and meanings: src/lstm_fused/ops.py.
//
// What is not given costs nothing to hand over (about 0.3 us an argument otherwise): the forward ops have defaults. The
// backward ops, which get everything, have none. A step's number is SymInt, for which torch.compile makes one graph: an
// int is a constant of it.
#include <torch/csrc/stable/library.h>

#define LSTM_FUSED_WEIGHTS(none)                                                                                    \
  "Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih" none ", Tensor? bias_hh" none ", Tensor? weight_ln_ih" none \
  ", Tensor? weight_ln_hh" none ", Tensor? weight_ln_c" none ", Tensor? bias_ln_c" none ", Tensor? bias_ln_ih" none \
  ", Tensor? bias_ln_hh" none ", Tensor? weight_hr" none ", Tensor? weight_ci" none ", Tensor? weight_cf" none      \
  ", Tensor? weight_co" none
#define LSTM_FUSED_LAYER_INPUTS(none)                                                                               \
  "Tensor input, Tensor h_0, Tensor c_0, " LSTM_FUSED_WEIGHTS(none) ", Tensor? lengths" none ", Tensor? reset" none \
                                                                    ", Tensor? seed" none
#define LSTM_FUSED_CELL_INPUTS(none) \
  "Tensor input, Tensor h_0, Tensor c_0, " LSTM_FUSED_WEIGHTS(none) ", Tensor? reset" none ", Tensor? seed" none
#define LSTM_FUSED_STEP_OPTIONS                                                                               \
  "float recurrent_dropout=0.0, float candidate_dropout=0.0, float weight_dropout=0.0, float zoneout_h=0.0, " \
  "float zoneout_c=0.0, int open_gates=0, bool training=True, float eps=1e-05, int stream=0"
#define LSTM_FUSED_LAYER_OPTIONS \
  "bool reverse=False, float dropout=0.0, bool variational=False, int recompute=0, " LSTM_FUSED_STEP_OPTIONS
#define LSTM_FUSED_CELL_OPTIONS "SymInt step=0, " LSTM_FUSED_STEP_OPTIONS
#define LSTM_FUSED_GRADIENTS                                                                                \
  "Tensor d_input, Tensor d_h_0, Tensor d_c_0, Tensor d_weight_ih, Tensor d_weight_hh, "                    \
  "Tensor d_bias, Tensor d_weight_ln_ih, Tensor d_weight_ln_hh, Tensor d_weight_ln_c, Tensor d_bias_ln_c, " \
  "Tensor d_weight_hr, Tensor d_weight_ci, Tensor d_weight_cf, Tensor d_weight_co"

STABLE_TORCH_LIBRARY(lstm_fused, m) {
  m.def("lstm_layer(" LSTM_FUSED_LAYER_INPUTS("=None") ", *, " LSTM_FUSED_LAYER_OPTIONS
                                                       ") -> (Tensor output, Tensor h_n, Tensor c_n, Tensor hidden, "
                                                       "Tensor cells, Tensor gates, Tensor recurrent, "
                                                       "Tensor stats)");
  m.def("lstm_layer_inference(" LSTM_FUSED_LAYER_INPUTS("=None") ", *, " LSTM_FUSED_LAYER_OPTIONS
                                                                 ") -> (Tensor output, Tensor h_n, Tensor c_n)");
  m.def("lstm_layer_backward(Tensor d_output, Tensor d_h_n, Tensor d_c_n, " LSTM_FUSED_LAYER_INPUTS(
      "") ", Tensor output, Tensor hidden, Tensor cells, Tensor gates, Tensor recurrent, Tensor stats, "
          "*, " LSTM_FUSED_LAYER_OPTIONS ", bool want_input, bool want_weights) -> (" LSTM_FUSED_GRADIENTS ")");

  m.def("lstm_cell(" LSTM_FUSED_CELL_INPUTS(
      "=None") ", *, " LSTM_FUSED_CELL_OPTIONS
               ") -> (Tensor h, Tensor c, Tensor gates, Tensor recurrent, Tensor stats)");
  m.def("lstm_cell_inference(" LSTM_FUSED_CELL_INPUTS("=None") ", *, " LSTM_FUSED_CELL_OPTIONS
                                                               ") -> (Tensor h, Tensor c)");
  // lstm_cell_inference with no option. Arguments that are not there cost something too, 0.1 us each, and this is the
  // call whose time is latency: a step of one sequence.
  m.def(
      "lstm_cell_plain(Tensor input, Tensor h_0, Tensor c_0, Tensor weight_ih, Tensor weight_hh, "
      "Tensor? bias_ih=None, Tensor? bias_hh=None) -> (Tensor h, Tensor c)");
  m.def("lstm_cell_backward(Tensor d_h, Tensor d_c, " LSTM_FUSED_CELL_INPUTS(
      "") ", Tensor gates, Tensor recurrent, Tensor stats, *, " LSTM_FUSED_CELL_OPTIONS
          ", bool want_input, bool want_weights) -> (" LSTM_FUSED_GRADIENTS ")");
}
