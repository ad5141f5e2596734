// One layer and direction over a whole sequence, on the CPU: work is split, scratch is allocated, kernels are called.
// No torch: the caller brings the way to run tasks in parallel.
#pragma once

#include <functional>

#include "lstm/problem.h"

namespace lstm_fused::cpu {

struct Executor {
  int64_t threads = 1;
  // Calls f(0) ... f(tasks - 1), in any order and in parallel.
  std::function<void(int64_t tasks, const std::function<void(int64_t)>& f)> run;
};

// T: float or double. The bits of the results do not depend on the executor.
template <typename T>
void layer_forward(const LayerSizes& sizes, const LayerOptions& options, const LayerInputs<T>& in,
                   const LayerOutputs<T>& out, const Executor& executor);

template <typename T>
void layer_backward(const LayerSizes& sizes, const LayerOptions& options, const LayerInputs<T>& in,
                    const LayerOutputs<T>& out, const LayerGradients<T>& grad, const Executor& executor);

}  // namespace lstm_fused::cpu
