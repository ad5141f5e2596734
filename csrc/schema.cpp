// What every op takes and gives, and nothing else. Shapes and meanings: lstm/op_table.h, src/lstm_fused/ops.py.
//
// What is not given costs nothing to hand over (about 0.3 us an argument otherwise): the forward ops have defaults. The
// backward ops, which get everything, have none. A step's number is SymInt, for which torch.compile makes one graph: an
// int is a constant of it.
#include <torch/csrc/stable/library.h>

#include "lstm/op_table.h"

#define GIVEN(name, ...) ", Tensor " #name
#define MAYBE(name, ...) ", Tensor? " #name
#define MAYBE_NONE(name, ...) ", Tensor? " #name "=None"
#define RATE(name) ", float " #name "=0.0"
#define COUNT(name, ...) ", int " #name "=0"
#define FLAG(name, value) ", bool " #name "=" FLAG_##value
#define REAL(name, value) ", float " #name "=" #value
#define FLAG_true "True"
#define FLAG_false "False"

#define WEIGHTS(maybe) LSTM_FUSED_WEIGHTS(GIVEN, maybe, maybe)
#define CELL_TENSORS(maybe) "Tensor input" LSTM_FUSED_STATE(GIVEN) WEIGHTS(maybe) maybe(reset) maybe(seed)
#define LAYER_TENSORS(maybe) \
  "Tensor input" LSTM_FUSED_STATE(GIVEN) WEIGHTS(maybe) maybe(lengths) maybe(reset) maybe(seed)
#define LAYER_OPTIONS ", *" LSTM_FUSED_LAYER_OPTIONS(RATE, COUNT, FLAG, REAL)
#define CELL_OPTIONS ", *, SymInt step=0" LSTM_FUSED_STEP_OPTIONS(RATE, COUNT, FLAG, REAL)
#define GRADIENTS "Tensor d_input" LSTM_FUSED_GRADIENTS(GIVEN)

STABLE_TORCH_LIBRARY(lstm_fused, m) {
  m.def("lstm_layer(" LAYER_TENSORS(MAYBE_NONE) LAYER_OPTIONS
        ") -> (Tensor output, Tensor h_n, Tensor c_n, Tensor hidden, Tensor cells, Tensor gates, Tensor recurrent, "
        "Tensor stats)");
  m.def("lstm_layer_inference(" LAYER_TENSORS(MAYBE_NONE) LAYER_OPTIONS ") -> (Tensor output, Tensor h_n, Tensor c_n)");
  m.def("lstm_layer_backward(Tensor d_output, Tensor d_h_n, Tensor d_c_n, " LAYER_TENSORS(
      MAYBE) ", Tensor output, Tensor hidden, Tensor cells, Tensor gates, Tensor recurrent, Tensor stats" LAYER_OPTIONS
             ", bool want_input, bool want_weights) -> (" GRADIENTS ")");

  m.def("lstm_cell(" CELL_TENSORS(MAYBE_NONE) CELL_OPTIONS
        ") -> (Tensor h, Tensor c, Tensor gates, Tensor recurrent, Tensor stats)");
  m.def("lstm_cell_inference(" CELL_TENSORS(MAYBE_NONE) CELL_OPTIONS ") -> (Tensor h, Tensor c)");
  // lstm_cell_inference with no option. Arguments that are not there cost something too, 0.1 us each, and this is the
  // call whose time is latency: a step of one sequence.
  m.def(
      "lstm_cell_plain(Tensor input, Tensor h_0, Tensor c_0, Tensor weight_ih, Tensor weight_hh, "
      "Tensor? bias_ih=None, Tensor? bias_hh=None) -> (Tensor h, Tensor c)");
  m.def("lstm_cell_backward(Tensor d_h, Tensor d_c, " CELL_TENSORS(
      MAYBE) ", Tensor gates, Tensor recurrent, Tensor stats" CELL_OPTIONS
             ", bool want_input, bool want_weights) -> (" GRADIENTS ")");
}
