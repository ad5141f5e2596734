// The ops' arguments and gradients, once: schemas, parameters, structs, checks and allocations follow from these lists.
// One entry per argument, in the order of the ops; shapes in the sizes of LayerSizes. Only the preprocessor can make a
// schema's text and a function's parameters of the same entry, so a list is a macro that is given what to make.
#pragma once

// clang-format off

// required(name, shape...), optional(name, shape...); folded: optional, and the kernels get it in another's place.
#define LSTM_FUSED_STATE(required) \
  required(h_0, B, P)              \
  required(c_0, B, H)

#define LSTM_FUSED_WEIGHTS(required, optional, folded)                       \
  required(weight_ih, 4 * H, I)                                              \
  required(weight_hh, 4 * H, P)                                              \
  optional(bias_ih, 4 * H)      /* both biases or neither */                 \
  optional(bias_hh, 4 * H)                                                   \
  optional(weight_ln_ih, 4 * H) /* layer norm: these four */                 \
  optional(weight_ln_hh, 4 * H)                                              \
  optional(weight_ln_c, H)                                                   \
  optional(bias_ln_c, H)                                                     \
  folded(bias_ln_ih, 4 * H)     /* "carry": these two in place of a bias */  \
  folded(bias_ln_hh, 4 * H)                                                  \
  optional(weight_hr, P, H)     /* the projection */                         \
  optional(weight_ci, H)        /* peepholes: all three or none */           \
  optional(weight_cf, H)                                                     \
  optional(weight_co, H)

// count(name, values, what): the choices of the cell's equations, numbers below `values`, each by default 0: as a
// sentence says it. cell.h has the formulas; everything else that a choice passes through follows from this list.
#define LSTM_FUSED_CELL_CHOICES(count)                                                                      \
  count(open_gates, 8, "a sum of 1 (i), 2 (f) and 4 (o)") /* gates that are 1: bits of OpenGate in cell.h */ \
  count(activation, 2, "0 (tanh) or 1 (relu)")            /* of the candidate and of the output */           \
  count(recurrent_activation, 2, "0 (sigmoid) or 1 (hard_sigmoid)") /* of the gates */

// rate(name): a probability in [0, 1), by default 0; count(name): an integer, by default 0; flag(name, default);
// real(name, default).
#define LSTM_FUSED_STEP_OPTIONS(rate, count, flag, real)                                              \
  rate(recurrent_dropout)  /* of the hidden state, locked over time */                                \
  rate(candidate_dropout)  /* of g, drawn at every step */                                            \
  rate(weight_dropout)     /* of weight_hh, one mask per call */                                      \
  rate(zoneout_h)                                                                                     \
  rate(zoneout_c)                                                                                     \
  LSTM_FUSED_CELL_CHOICES(count)                                                                      \
  flag(training, true)     /* masks are drawn; otherwise no dropout, and zoneout's expected value */  \
  real(eps, 1e-05)                                                                                    \
  count(stream)            /* of random numbers: layer * directions + direction */

#define LSTM_FUSED_LAYER_OPTIONS(rate, count, flag, real)                                     \
  flag(reverse, false)     /* from the last real step to the first */                         \
  rate(dropout)            /* of the output */                                                \
  flag(variational, false) /* whose mask is locked over time */                               \
  count(recompute)         /* steps of a segment that the backward pass computes again; or 0 */ \
  LSTM_FUSED_STEP_OPTIONS(rate, count, flag, real)

// gradient(name, condition, shape...). Before them comes d_input, which has the shape of the input. d_bias is the
// gradient of either bias, and of either bias of "carry".
#define LSTM_FUSED_GRADIENTS(gradient)                           \
  gradient(d_h_0, true, B, P)                                    \
  gradient(d_c_0, true, B, H)                                    \
  gradient(d_weight_ih, want_weights, 4 * H, I)                  \
  gradient(d_weight_hh, want_weights, 4 * H, P)                  \
  gradient(d_bias, want_weights, 4 * H)                          \
  gradient(d_weight_ln_ih, want_weights && norm, 4 * H)          \
  gradient(d_weight_ln_hh, want_weights && norm, 4 * H)          \
  gradient(d_weight_ln_c, want_weights && norm, H)               \
  gradient(d_bias_ln_c, want_weights && norm, H)                 \
  gradient(d_weight_hr, want_weights && projection, P, H)        \
  gradient(d_weight_ci, want_weights && peephole, H)             \
  gradient(d_weight_cf, want_weights && peephole, H)             \
  gradient(d_weight_co, want_weights && peephole, H)

// For entries that are left out.
#define LSTM_FUSED_NONE(...)

// clang-format on
