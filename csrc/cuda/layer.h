// A layer on the device: which kernels and matrix products a call queues, and in which order.
//
// The road taken here is that of the steps: one product and one kernel a step, for every shape and every option.
// Another road, such as one kernel for the whole sequence, would join in layer_forward and layer_backward: it sees the
// same arguments and has to leave the same results.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "lstm/problem.h"

namespace lstm_fused::cuda {

using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// The arguments of a call, checked and contiguous.
struct Arguments {
  LayerSizes sizes{};
  LayerOptions options;
  MaybeTensor input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh;
  MaybeTensor weight_ln_ih, weight_ln_hh, weight_ln_c, bias_ln_c;  // bias_ln_ih and bias_ln_hh are bias_ih and bias_hh
  MaybeTensor weight_hr, weight_ci, weight_cf, weight_co, lengths, reset, seed;
};

// Results of a forward pass, allocated by the caller. What is null is not wanted.
struct Forward {
  MaybeTensor output, h_n, c_n;                        // [T, B, P], [B, P], [B, H]
  MaybeTensor hidden, cells, gates, recurrent, stats;  // as LayerSaved; cells and stats of the accumulator's type
};

struct Gradients {
  MaybeTensor d_input, d_h_0, d_c_0;  // d_input may be null: not wanted
  // All null when no gradient of a weight is wanted.
  MaybeTensor d_weight_ih, d_weight_hh, d_bias, d_weight_ln_ih, d_weight_ln_hh, d_weight_ln_c, d_bias_ln_c;
  MaybeTensor d_weight_hr, d_weight_ci, d_weight_cf, d_weight_co;
};

template <typename T>
void layer_forward(const Arguments&, const Forward&, cudaStream_t);
template <typename T>
void layer_backward(const Arguments&, const Forward& saved, const Tensor& d_output, const Tensor& d_h_n,
                    const Tensor& d_c_n, const Gradients&, cudaStream_t);

}  // namespace lstm_fused::cuda
