// The forward pass of a layer over runs of steps: of a call, and of the segments that a backward pass computes again.
#pragma once

#include <vector>

#include "cpu/layer_common.h"
#include "cpu/team.h"

namespace lstm_fused::cpu {

constexpr int64_t kMergedRows = 16;                  // sequences from which a step makes both products at once ...
constexpr int64_t kMergedRowsOfSmall = 4;            // ... and when the weights are small:
constexpr int64_t kSmallWeights = int64_t{1} << 19;  // bytes

// Whether both products of a step go into one tile. That reads all weights at every step: it pays where the rows of a
// step keep the multipliers busy meanwhile, or where the weights stay in the second-level cache. The rule must not
// depend on the number of threads, because the order of the sums does on it.
template <typename T>
bool merges_products(const LayerSizes& sizes, int64_t group) {
  const int64_t bytes = 4 * sizes.hidden_size * (sizes.input_size + sizes.projection_size) * sizeof(T) / group;
  return sizes.batch >= kMergedRows || (sizes.batch >= kMergedRowsOfSmall && bytes <= kSmallWeights);
}

// The forward kernels over runs of steps, and what all runs share, made once.
template <typename T>
class ForwardPass {
 public:
  // `in` with weight_hh as the recurrence uses it.
  ForwardPass(const LayerSizes& sizes, const LayerOptions& options, const LayerInputs<T>& in, const Plan& plan,
              bool saves, Workspace& workspace, const Executor& executor)
      : k_(packs(sizes) ? kernels_for<T>(options) : kernels<T>(isa_in_use())),
        sizes_(sizes),
        options_(options),
        plan_(plan) {
    const int64_t I = sizes.input_size, H = sizes.hidden_size, P = sizes.projection_size;
    merged_ = packs(sizes) && !has_layer_norm(options) && merges_products<T>(sizes, k_.group);
    bias_ = sum_of_biases(in, 4 * H, workspace);
    if (packs(sizes) && plan.max_steps() > 0) {
      const int64_t panels = k_.gate_panels(H);
      const int64_t panel_size = (operands(k_, I) + operands(k_, P)) * k_.panel_columns;
      void* const packed = workspace.take<T>(panels * panel_size);
      parallel_for(executor, panels, [&](int64_t first, int64_t last) {
        k_.pack_gates(in.weight_ih, H, I, first, last, packed, panel_size, 0);
        k_.pack_gates(in.weight_hh, H, P, first, last, packed, panel_size, operands(k_, I));
      });
      const int64_t hr_panels = options.projection ? k_.plain_panels(P) : 0;
      void* const packed_hr = workspace.take<T>(hr_panels * k_.panel_columns * operands(k_, H));
      parallel_for(executor, hr_panels, [&](int64_t first, int64_t last) {
        k_.pack_plain_weight(in.weight_hr, P, H, first, last, packed_hr);
      });
      packed_ = packed;
      packed_hr_ = packed_hr;
    }
    for (int64_t task = 0; task < plan.tasks(); ++task)
      scratch_.push_back(
          workspace.take<char>(k_.forward_scratch(sizes, options, saves, merged_, plan.rows(task), plan.members)));
  }

  // The rows of a task: see ForwardTask.
  void run(int64_t task, const Team& team, const LayerInputs<T>& in, const LayerOutputs<T>& out, int64_t saved_steps,
           int64_t step_begin, int64_t step_end) const {
    k_.forward({sizes_, options_, in, out, saved_steps, plan_.order(), plan_.task_begin[task],
                plan_.task_begin[task + 1], step_begin, step_end, packed_, merged_, packed_hr_, bias_, team,
                scratch_[task]});
  }

 private:
  const Kernels<T>& k_;
  const LayerSizes& sizes_;
  const LayerOptions options_;
  const Plan& plan_;
  bool merged_;
  const void *packed_ = nullptr, *packed_hr_ = nullptr;
  const T* bias_;
  std::vector<char*> scratch_;
};

// `in` with the state before a segment, of those that a forward pass has saved, in the place of the initial state.
template <typename T>
LayerInputs<T> from_segment(const LayerSizes& sizes, LayerInputs<T> in, const LayerSaved<T>& states, int64_t segment) {
  in.h_0 = states.hidden + segment * sizes.batch * sizes.projection_size;
  in.c_0 = states.cells + segment * sizes.batch * sizes.hidden_size;
  return in;
}

}  // namespace lstm_fused::cpu
