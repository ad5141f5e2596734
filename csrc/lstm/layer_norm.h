// Layer norm of one row of n values, gain only:  y = (x - mean) * rstd * gain,   rstd = 1 / sqrt(var + eps).
// Derived in docs/equations.md. The element formulas; the row sums belong to each backend. A bias is added where y is
// used: those of the two norms of "carry" are one sum with each other, as bias_ih and bias_hh are.
//
//   d_x = rstd * (u - mean(u) - x_hat * mean(u * x_hat)),   u = d_y * gain,   x_hat = (x - mean) * rstd
//   d_gain += d_y * x_hat
#pragma once

#include "lstm/host_device.h"

namespace lstm_fused {

template <class V>
LSTM_FUSED_FN V normalize(V x, V mean, V rstd) {
  return (x - mean) * rstd;
}

template <class V>
LSTM_FUSED_FN V d_normalize(V d_x_hat, V x_hat, V mean_d, V mean_d_x_hat, V rstd) {
  return rstd * (d_x_hat - mean_d - x_hat * mean_d_x_hat);
}

}  // namespace lstm_fused
