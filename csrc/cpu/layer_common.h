// What the forward and the backward pass of a layer share: parallel loops, the plan, copies of parameters.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cpu/kernels.h"
#include "cpu/layer.h"
#include "cpu/plan.h"
#include "cpu/workspace.h"

namespace lstm_fused::cpu {

// bias_ih + bias_hh, or zeros without biases: [4H].
template <typename T>
const T* sum_of_biases(const LayerInputs<T>& in, int64_t gates, Workspace& workspace) {
  T* const bias = workspace.take<T>(gates);
  for (int64_t k = 0; k < gates; ++k) bias[k] = in.bias_ih ? in.bias_ih[k] + in.bias_hh[k] : T(0);
  return bias;
}

// How many tasks parallel_for makes of [0, count).
inline int64_t parallel_tasks(const Executor& executor, int64_t count) { return std::min(executor.threads, count); }

// f(task, first, last) in parallel over nearly equal parts of [0, count).
inline void parallel_for_numbered(const Executor& executor, int64_t count,
                                  const std::function<void(int64_t, int64_t, int64_t)>& f) {
  const int64_t tasks = parallel_tasks(executor, count);
  if (tasks > 0) executor.run(tasks, [&](int64_t task) { f(task, count * task / tasks, count * (task + 1) / tasks); });
}

// The same without the number of the task.
inline void parallel_for(const Executor& executor, int64_t count, const std::function<void(int64_t, int64_t)>& f) {
  parallel_for_numbered(executor, count, [&](int64_t, int64_t first, int64_t last) { f(first, last); });
}

// Zeroes the rows past the lengths of a [T, B, width] tensor.
template <typename T>
void zero_padding(const LayerSizes& sizes, const int64_t* lengths, int64_t width, T* tensor, const Executor& executor) {
  if (!lengths || !tensor) return;
  parallel_for(executor, sizes.steps, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t)
      for (int64_t b = 0; b < sizes.batch; ++b)
        if (t >= lengths[b]) std::memset(tensor + (t * sizes.batch + b) * width, 0, sizeof(T) * width);
  });
}

// The options as this call acts on them: no dropout in evaluation, no segment longer than the sequence.
inline LayerOptions effective(const LayerSizes& sizes, LayerOptions options) {
  options.recompute = std::min(options.recompute, std::max<int64_t>(1, sizes.steps));
  if (!options.training)
    options.dropout = options.recurrent_dropout = options.candidate_dropout = options.weight_dropout = 0;
  return options;
}

// weight_hh itself, or a masked copy if weight dropout is on.
template <typename T>
const T* dropped_weight(const Kernels<T>& k, const LayerSizes& sizes, const LayerOptions& options, const T* weight_hh,
                        Workspace& workspace, const Executor& executor) {
  if (options.weight_dropout == 0) return weight_hh;
  const int64_t rows = 4 * sizes.hidden_size, columns = sizes.projection_size;
  T* const dropped = workspace.take<T>(rows * columns);
  parallel_for(executor, rows,
               [&](int64_t first, int64_t last) { k.drop_weights(options, weight_hh, columns, first, last, dropped); });
  return dropped;
}

template <typename T>
void zero(T* p, int64_t count) {
  if (p) std::memset(p, 0, sizeof(T) * count);
}

// Steps x rows up to which the forward pass uses unpacked weights.
constexpr int64_t kUnpackedRows = 8;

inline bool packs(const LayerSizes& sizes) { return sizes.steps * sizes.batch > kUnpackedRows; }

template <typename T>
int64_t operands(const Kernels<T>& k, int64_t count) {
  return ceil_div(count, k.group);
}

template <typename T>
const Kernels<T>& kernels_for(const LayerOptions& options) {
  if constexpr (std::is_same<T, float>::value)
    if (const Kernels<float>* const pairs = options.bfloat16 ? bfloat16_kernels(isa_in_use()) : nullptr) return *pairs;
  return kernels<T>(isa_in_use());
}

// Unpacked weights mean a tiny problem: its steps are not split across threads.
template <typename T>
Plan make_plan(const LayerSizes& sizes, const LayerOptions& options, const int64_t* lengths, const Executor& executor) {
  const Kernels<T>& k = kernels_for<T>(options);
  const int64_t P = sizes.projection_size, weight_bytes = 4 * sizes.hidden_size * P * sizeof(T) / k.group;
  return Plan(sizes, lengths, executor.threads, weight_bytes, packs(sizes) ? k.plain_panels(P) : 1);
}

}  // namespace lstm_fused::cpu
