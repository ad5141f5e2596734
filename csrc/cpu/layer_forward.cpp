#include "cpu/forward_pass.h"

namespace lstm_fused::cpu {

template <typename T>
void layer_forward(const LayerSizes& sizes, const LayerOptions& given, const LayerInputs<T>& given_in,
                   const LayerOutputs<T>& out, const Executor& executor) {
  const LayerOptions options = effective(sizes, given);
  LayerInputs<T> in = given_in;
  const int64_t B = sizes.batch, H = sizes.hidden_size, P = sizes.projection_size;
  const Plan plan = make_plan<T>(sizes, options, in.lengths, executor);
  const bool saves_states = options.recompute > 0 && out.saved.cells;

  // What is saved past a length is never read, but an op's results must not depend on what memory held before.
  zero_padding(sizes, in.lengths, P, out.output, executor);
  if (!saves_states) {
    zero_padding(sizes, in.lengths, P, out.saved.hidden, executor);
    zero_padding(sizes, in.lengths, H, out.saved.cells, executor);
    zero_padding(sizes, in.lengths, 4 * H, out.saved.gates, executor);
    zero_padding(sizes, in.lengths, 4 * H, out.saved.recurrent, executor);
    zero_padding(sizes, in.lengths, 6, out.saved.stats, executor);
  }
  if (B == 0) return;

  Workspace& workspace = Workspace::of_this_thread();
  const Workspace::Call call(workspace);
  if (plan.max_steps() > 0)
    in.weight_hh = dropped_weight(kernels<T>(isa_in_use()), sizes, options, in.weight_hh, workspace, executor);
  const ForwardPass<T> pass(sizes, options, in, plan, out.saved.gates != nullptr, workspace, executor);
  if (!saves_states) {
    const int64_t saved_steps = std::max<int64_t>(1, sizes.steps);
    run_teams(executor, plan.tasks(), plan.members,
              [&](int64_t task, const Team& team) { pass.run(task, team, in, out, saved_steps, 0, sizes.steps); });
    return;
  }
  const LayerSaved<T>& states = out.saved;
  std::memcpy(states.hidden, in.h_0, sizeof(T) * B * P);
  std::memcpy(states.cells, in.c_0, sizeof(T) * B * H);
  const int64_t count = segments(sizes, options), steps = options.recompute;
  run_teams(executor, plan.tasks(), plan.members, [&](int64_t task, const Team& team) {
    for (int64_t segment = 0; segment < count; ++segment) {
      const int64_t next = segment + 1;
      pass.run(task, team, from_segment(sizes, in, states, segment),
               {out.output, states.hidden + next * B * P, states.cells + next * B * H, {}}, 1, segment * steps,
               std::min(next * steps, sizes.steps));
    }
  });
  std::memcpy(out.h_n, states.hidden + count * B * P, sizeof(T) * B * P);
  std::memcpy(out.c_n, states.cells + count * B * H, sizeof(T) * B * H);
}

template void layer_forward<float>(const LayerSizes&, const LayerOptions&, const LayerInputs<float>&,
                                   const LayerOutputs<float>&, const Executor&);
template void layer_forward<double>(const LayerSizes&, const LayerOptions&, const LayerInputs<double>&,
                                    const LayerOutputs<double>&, const Executor&);

}  // namespace lstm_fused::cpu
