// A layer on the device: which kernels and matrix products a call queues, and in which order.
//
// The way taken here is that of the steps: one product and one kernel a step, for every shape and every option.
// Another way, such as one kernel for the whole sequence, would join in layer_forward and layer_backward: it sees the
// same arguments and has to leave the same results.
#pragma once

#include <cuda_runtime.h>

#include "op_implementations.h"

namespace lstm_fused::cuda {

// Values of W_ih x that are computed at a time where they are not kept. Tests make it small.
inline int64_t chunk_values = int64_t{1} << 24;

// Products by torch's dispatcher even where there is a shorter way. For tests.
inline bool by_dispatcher = false;

template <typename T>
void layer_forward(const Arguments&, const Forward&, cudaStream_t);
template <typename T>
void layer_backward(const Arguments&, const Forward& saved, const Tensor& d_output, const Tensor& d_h_n,
                    const Tensor& d_c_n, const Gradients&, cudaStream_t);

}  // namespace lstm_fused::cuda
