#include "cpu/layer.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <type_traits>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/plan.h"
#include "cpu/team.h"
#include "cpu/workspace.h"

namespace lstm_fused::cpu {
namespace {

// Steps x rows whose gate gradients are kept at a time: few stay in the second-level cache, many share one pass over
// the sums of the weight gradients. Twice the hidden size, within this bound and the kernels' own.
constexpr int64_t kLeastChunkRows = 256;
constexpr int64_t kUnpackedRows = 8;       // steps x rows up to which the forward pass uses the weights as they lie
constexpr int64_t kMergedRows = 16;        // sequences from which a step makes both products at once ...
constexpr int64_t kMergedRowsOfSmall = 4;  // ... and when the weights are small:
constexpr int64_t kSmallWeights = int64_t{1} << 19;  // bytes

// Whether both products of a step go into one tile. That reads all weights at every step: it pays where the rows of a
// step keep the multipliers busy meanwhile, or where the weights stay in the second-level cache. The rule must not
// depend on the number of threads, because the order of the sums does on it.
template <typename T>
bool merges_products(const LayerSizes& sizes, int64_t group) {
  const int64_t bytes = 4 * sizes.hidden_size * (sizes.input_size + sizes.projection_size) * sizeof(T) / group;
  return sizes.batch >= kMergedRows || (sizes.batch >= kMergedRowsOfSmall && bytes <= kSmallWeights);
}

template <typename T>
const T* sum_of_biases(const LayerInputs<T>& in, int64_t gates, Workspace& workspace) {
  T* const bias = workspace.take<T>(gates);
  for (int64_t k = 0; k < gates; ++k) bias[k] = in.bias_ih ? in.bias_ih[k] + in.bias_hh[k] : T(0);
  return bias;
}

// How many shares of [0, count) there are.
int64_t shares(const Executor& executor, int64_t count) { return std::min(executor.threads, count); }

// f(number, first, last) over shares of [0, count).
void share_numbered(const Executor& executor, int64_t count, const std::function<void(int64_t, int64_t, int64_t)>& f) {
  const int64_t tasks = shares(executor, count);
  if (tasks > 0) executor.run(tasks, [&](int64_t task) { f(task, count * task / tasks, count * (task + 1) / tasks); });
}

// f(first, last) over them.
void share(const Executor& executor, int64_t count, const std::function<void(int64_t, int64_t)>& f) {
  share_numbered(executor, count, [&](int64_t, int64_t first, int64_t last) { f(first, last); });
}

// Zeroes the rows past the lengths of a [T, B, width] tensor.
template <typename T>
void zero_padding(const LayerSizes& sizes, const int64_t* lengths, int64_t width, T* tensor, const Executor& executor) {
  if (!lengths || !tensor) return;
  share(executor, sizes.steps, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t)
      for (int64_t b = 0; b < sizes.batch; ++b)
        if (t >= lengths[b]) std::memset(tensor + (t * sizes.batch + b) * width, 0, sizeof(T) * width);
  });
}

LayerOptions effective(const LayerSizes& sizes, LayerOptions options) {
  options.recompute = std::min(options.recompute, std::max<int64_t>(1, sizes.steps));
  if (!options.training)
    options.dropout = options.recurrent_dropout = options.candidate_dropout = options.weight_dropout = 0;
  return options;
}

// weight_hh as the recurrence uses it: with weight dropout a copy that is.
template <typename T>
const T* dropped_weight(const Kernels<T>& k, const LayerSizes& sizes, const LayerOptions& options, const T* weight_hh,
                        Workspace& workspace, const Executor& executor) {
  if (options.weight_dropout == 0) return weight_hh;
  const int64_t rows = 4 * sizes.hidden_size, columns = sizes.projection_size;
  T* const dropped = workspace.take<T>(rows * columns);
  share(executor, rows,
        [&](int64_t first, int64_t last) { k.drop_weights(options, weight_hh, columns, first, last, dropped); });
  return dropped;
}

template <typename T>
void zero(T* p, int64_t count) {
  if (p) std::memset(p, 0, sizeof(T) * count);
}

bool packs(const LayerSizes& sizes) { return sizes.steps * sizes.batch > kUnpackedRows; }

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

// Weights that are used as they lie are too few to be shared by threads.
template <typename T>
Plan make_plan(const LayerSizes& sizes, const LayerOptions& options, const int64_t* lengths, const Executor& executor) {
  const Kernels<T>& k = kernels_for<T>(options);
  const int64_t P = sizes.projection_size, weight_bytes = 4 * sizes.hidden_size * P * sizeof(T) / k.group;
  return Plan(sizes, lengths, executor.threads, weight_bytes, packs(sizes) ? k.plain_panels(P) : 1);
}

// The backward pass of h_t = W_hr h', over the chunks of a call. Without a projection all is null and nothing happens.
template <typename T>
struct Projection {
  const Kernels<T>& k;
  int64_t hidden_size, projection_size, stride;
  void* packed_hr = nullptr;  // plain panels of W_hr [P, H]
  T* d_hidden = nullptr;      // [rows of the chunk, stride]
  T* unprojected = nullptr;   // [rows of the chunk, H] h'; null where no weight gradients are wanted, like the next two
  void* packed_unprojected = nullptr;
  T* gradient_scratch = nullptr;
  T* sums = nullptr;  // [H, stride]
  std::vector<const T*> rows;

  Projection(const Kernels<T>& kernels, const LayerSizes& sizes, const LayerOptions& options, int64_t chunk_rows,
             bool want_weights, Workspace& workspace, const Executor& executor)
      : k(kernels),
        hidden_size(sizes.hidden_size),
        projection_size(sizes.projection_size),
        stride(kernels.gradient_stride(sizes.projection_size)) {
    if (!options.projection) return;
    packed_hr = workspace.take<T>(k.plain_panels(hidden_size) * k.panel_columns * operands(k, projection_size));
    d_hidden = workspace.take<T>(chunk_rows * stride);
    // Columns past P are read as part of a panel; their products are never used.
    for (int64_t row = 0; row < chunk_rows; ++row)
      zero(d_hidden + row * stride + projection_size, stride - projection_size);
    if (!want_weights) return;
    unprojected = workspace.take<T>(chunk_rows * hidden_size);
    packed_unprojected = workspace.take<T>(operands(k, chunk_rows) * hidden_size);
    gradient_scratch = workspace.take<T>(shares(executor, k.plain_panels(projection_size)) * k.gradient_scratch);
    sums = workspace.take<T>(hidden_size * stride);
    for (int64_t row = 0; row < chunk_rows; ++row) rows.push_back(unprojected + row * hidden_size);
  }

  void pack(const T* weight_hr, const Executor& executor) {
    if (!packed_hr) return;
    share(executor, k.plain_panels(hidden_size), [&](int64_t first, int64_t last) {
      k.pack_plain(weight_hr, projection_size, hidden_size, first, last, packed_hr);
    });
  }

  // d_W_hr^T += h'^T d_h_t of a chunk.
  void add_weight_gradient(int64_t count, bool first_chunk, const Executor& executor) {
    if (!sums) return;
    share(executor, ceil_div(count, k.gradient_block), [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t row = block * k.gradient_block;
        k.pack_transposed(rows.data(), nullptr, row, std::min(k.gradient_block, count - row), hidden_size,
                          packed_unprojected);
      }
    });
    share_numbered(executor, k.plain_panels(projection_size), [&](int64_t number, int64_t first, int64_t last) {
      k.weight_gradient({hidden_size, 0, stride, count, first, last, packed_unprojected, nullptr, d_hidden, d_hidden,
                         gradient_scratch + number * k.gradient_scratch, sums, first_chunk});
    });
  }

  void finish_weight_gradient(T* d_weight_hr, const Executor& executor) {
    if (!sums) return;
    share(executor, k.plain_panels(projection_size), [&](int64_t first, int64_t last) {
      k.unpack_gradient(sums, projection_size, hidden_size, first, last, d_weight_hr);
    });
  }
};

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
      share(executor, panels, [&](int64_t first, int64_t last) {
        k_.pack_gates(in.weight_ih, H, I, first, last, packed, panel_size, 0);
        k_.pack_gates(in.weight_hh, H, P, first, last, packed, panel_size, operands(k_, I));
      });
      const int64_t hr_panels = options.projection ? k_.plain_panels(P) : 0;
      void* const packed_hr = workspace.take<T>(hr_panels * k_.panel_columns * operands(k_, H));
      share(executor, hr_panels,
            [&](int64_t first, int64_t last) { k_.pack_plain_weight(in.weight_hr, P, H, first, last, packed_hr); });
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
    k_.forward({sizes_, options_, in, out, saved_steps, plan_.schedule(), plan_.task_begin[task],
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

// With `recompute`: the forward pass once more, a segment at a time, the last one first. Each fills the same memory.
template <typename T>
class Replay {
 public:
  // `in` as of ForwardPass; `states`: what the forward pass has saved.
  Replay(const LayerSizes& sizes, LayerOptions options, const LayerInputs<T>& in, const LayerSaved<T>& states,
         const Plan& plan, Workspace& workspace, const Executor& executor)
      : steps(options.recompute),
        sizes_(sizes),
        in_(in),
        states_(states),
        pass_(sizes, without_output(options), in, plan, true, workspace, executor) {
    const int64_t rows = steps * sizes.batch, gates = rows * 4 * sizes.hidden_size;
    const bool norm = has_layer_norm(options);
    saved.hidden = workspace.take<T>(rows * sizes.projection_size);
    saved.cells = workspace.take<T>(rows * sizes.hidden_size);
    saved.gates = workspace.take<T>(gates);
    saved.recurrent = norm ? workspace.take<T>(gates) : nullptr;
    saved.stats = norm ? workspace.take<T>(rows * 6) : nullptr;
  }

  LayerInputs<T> inputs(int64_t segment) const { return from_segment(sizes_, in_, states_, segment); }

  void run(int64_t task, const Team& team, int64_t segment) const {
    pass_.run(task, team, inputs(segment), {nullptr, nullptr, nullptr, saved}, steps, segment * steps,
              (segment + 1) * steps);
  }

  const int64_t steps;  // of a segment
  LayerSaved<T> saved;  // of the segment that ran last: step t is at t % steps

 private:
  // Nobody wants the output: its masks are not drawn.
  static LayerOptions without_output(LayerOptions options) {
    options.dropout = 0;
    return options;
  }

  const LayerSizes& sizes_;
  const LayerInputs<T> in_;
  const LayerSaved<T> states_;
  const ForwardPass<T> pass_;
};

}  // namespace

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

template <typename T>
void layer_backward(const LayerSizes& sizes, const LayerOptions& given, const LayerInputs<T>& given_in,
                    const LayerOutputs<T>& out, const LayerGradients<T>& grad, const Executor& executor) {
  const LayerOptions options = effective(sizes, given);
  const Kernels<T>& k = kernels_for<T>(options);
  LayerInputs<T> in = given_in;
  const int64_t B = sizes.batch, I = sizes.input_size, H = sizes.hidden_size, P = sizes.projection_size;
  const Plan plan = make_plan<T>(sizes, options, in.lengths, executor);
  const bool want_weights = grad.d_weight_ih != nullptr;

  zero_padding(sizes, in.lengths, I, grad.d_input, executor);
  const int64_t max_steps = plan.max_steps();
  if (max_steps == 0) {
    if (B > 0) {
      std::memcpy(grad.d_h_0, grad.d_h_n, sizeof(T) * B * P);
      std::memcpy(grad.d_c_0, grad.d_c_n, sizeof(T) * B * H);
    }
    zero(grad.d_weight_ih, 4 * H * I);
    zero(grad.d_weight_hh, 4 * H * P);
    zero(grad.d_weight_hr, P * H);
  }

  Workspace& workspace = Workspace::of_this_thread();
  const Workspace::Call call(workspace);
  const ParameterSums sums = k.parameter_sums(H, options);
  T* const parameter_sums = workspace.take<T>(plan.granules * sums.size);
  zero(parameter_sums, plan.granules * sums.size);

  if (max_steps > 0) {
    const int64_t stride = k.gradient_stride(4 * H);
    const int64_t chunk_rows_wanted = std::min(k.most_chunk_rows, std::max(kLeastChunkRows, 2 * H));
    const int64_t chunk_steps = std::min(max_steps, std::max<int64_t>(1, chunk_rows_wanted / B));
    const int64_t chunk_rows = chunk_steps * B;
    const int64_t gate_panels = k.plain_panels(4 * H);

    const int64_t gate_operands = operands(k, 4 * H);
    void* const packed_ih = workspace.take<T>(grad.d_input ? k.plain_panels(I) * k.panel_columns * gate_operands : 0);
    void* const packed_hh = workspace.take<T>(k.plain_panels(P) * k.panel_columns * gate_operands);
    in.weight_hh = dropped_weight(k, sizes, options, in.weight_hh, workspace, executor);
    share(executor, k.plain_panels(P),
          [&](int64_t first, int64_t last) { k.pack_plain(in.weight_hh, 4 * H, P, first, last, packed_hh); });
    Projection<T> projection(k, sizes, options, chunk_rows, want_weights, workspace, executor);
    projection.pack(in.weight_hr, executor);
    if (grad.d_input)
      share(executor, k.plain_panels(I),
            [&](int64_t first, int64_t last) { k.pack_plain(in.weight_ih, 4 * H, I, first, last, packed_ih); });
    const T* const bias = sum_of_biases(in, 4 * H, workspace);

    T* const d_gates_ih = workspace.take<T>(chunk_rows * stride);
    T* const d_gates_hh = has_layer_norm(options) ? workspace.take<T>(chunk_rows * stride) : d_gates_ih;
    // Columns past 4H are read as part of a panel; their products are never used.
    for (int64_t row = 0; row < chunk_rows; ++row) {
      zero(d_gates_ih + row * stride + 4 * H, stride - 4 * H);
      zero(d_gates_hh + row * stride + 4 * H, stride - 4 * H);
    }

    const int64_t mask_stride = k.scratch_stride(sizes);
    T* const hidden_mask = workspace.take<T>(options.recurrent_dropout > 0 ? B * mask_stride : 0);
    const int64_t row_groups = want_weights ? operands(k, chunk_rows) : 0;
    void* const packed_input = workspace.take<T>(row_groups * I);
    void* const packed_hidden = workspace.take<T>(row_groups * P);
    T* const gradient_scratch =
        workspace.take<T>(want_weights ? shares(executor, gate_panels) * k.gradient_scratch : 0);
    T* const weight_sums = workspace.take<T>(want_weights ? (I + P) * stride : 0);
    T* const zeros = workspace.take<T>(in.reset ? P : 0);  // h_{t-1} after a reset
    zero(zeros, P);

    // What the backward kernels read of the forward pass: all of it, or one segment after the other.
    std::optional<Replay<T>> replay;
    if (options.recompute > 0) replay.emplace(sizes, options, in, out.saved, plan, workspace, executor);
    LayerSaved<T> saved = replay ? replay->saved : out.saved;
    if (!saved.hidden) saved.hidden = out.output;
    const int64_t saved_steps = replay ? replay->steps : sizes.steps;
    // h_{t-1} of a chunk, which has several segments; otherwise it stays where it is saved.
    T* const kept_hidden = workspace.take<T>(replay && want_weights ? chunk_rows * P : 0);
    std::vector<const T*> inputs(chunk_rows), hiddens(chunk_rows);
    std::vector<const T*> masks(hidden_mask ? chunk_rows : 0);
    std::vector<int64_t> chunk_offset(chunk_steps);

    std::vector<char*> scratch;
    for (int64_t task = 0; task < plan.tasks(); ++task)
      scratch.push_back(workspace.take<char>(k.backward_scratch(sizes, options, plan.rows(task), plan.members)));
    const auto backward_task = [&](int64_t task, const Team& team, int64_t segment, int64_t step_begin,
                                   int64_t step_end, const int64_t* offset) -> BackwardTask<T> {
      return {sizes,
              options,
              replay ? replay->inputs(segment) : in,
              saved,
              saved_steps,
              segment * saved_steps,
              grad,
              plan.schedule(),
              plan.task_begin[task],
              plan.task_begin[task + 1],
              step_begin,
              step_end,
              step_end == max_steps,
              offset,
              packed_ih,
              packed_hh,
              projection.packed_hr,
              projection.d_hidden,
              projection.unprojected,
              bias,
              d_gates_ih,
              d_gates_hh,
              parameter_sums,
              plan.granule_rows,
              hidden_mask,
              team,
              scratch[task]};
    };

    for (int64_t step_end = max_steps; step_end > 0; step_end -= chunk_steps) {
      const int64_t step_begin = std::max<int64_t>(0, step_end - chunk_steps);
      int64_t rows = 0, active = B;
      for (int64_t s = step_begin; s < step_end; ++s) {
        while (plan.steps[active - 1] <= s) --active;
        chunk_offset[s - step_begin] = rows;
        rows += active;
      }
      // The part of the chunk that lies in one segment; without recomputation all steps are one.
      for (int64_t part_end = step_end, part_begin; part_end > step_begin; part_end = part_begin) {
        const int64_t segment = (part_end - 1) / saved_steps, segment_begin = segment * saved_steps;
        part_begin = std::max(step_begin, segment_begin);
        const bool enters_segment = part_end == max_steps || part_end % saved_steps == 0;
        int64_t n = chunk_offset[part_begin - step_begin];
        const int64_t* const offset = &chunk_offset[part_begin - step_begin];
        run_teams(executor, plan.tasks(), plan.members, [&](int64_t task, const Team& team) {
          if (replay && enters_segment) replay->run(task, team, segment);
          k.backward(backward_task(task, team, segment, part_begin, part_end, offset));
        });
        if (!want_weights) continue;

        const T* const h_start = replay ? replay->inputs(segment).h_0 : in.h_0;
        for (int64_t s = part_begin; s < part_end; ++s)
          for (int64_t r = 0; r < B && plan.steps[r] > s; ++r, ++n) {
            const int64_t b = plan.row[r], t = options.reverse ? plan.steps[r] - 1 - s : s;
            const int64_t t_prev = options.reverse ? t + 1 : t - 1;
            inputs[n] = in.input + (t * B + b) * I;
            hiddens[n] = s == segment_begin ? h_start + b * P : saved.hidden + (t_prev % saved_steps * B + b) * P;
            if (kept_hidden) hiddens[n] = static_cast<T*>(std::memcpy(kept_hidden + n * P, hiddens[n], sizeof(T) * P));
            if (in.reset && in.reset[t * B + b]) hiddens[n] = zeros;
            if (hidden_mask) masks[n] = hidden_mask + r * mask_stride;
          }
      }
      if (!want_weights) continue;

      share(executor, ceil_div(rows, k.gradient_block), [&](int64_t first, int64_t last) {
        for (int64_t block = first; block < last; ++block) {
          const int64_t row = block * k.gradient_block, count = std::min(k.gradient_block, rows - row);
          k.pack_transposed(inputs.data(), nullptr, row, count, I, packed_input);
          k.pack_transposed(hiddens.data(), hidden_mask ? masks.data() : nullptr, row, count, P, packed_hidden);
        }
      });
      share_numbered(executor, gate_panels, [&](int64_t number, int64_t first, int64_t last) {
        k.weight_gradient({I, P, stride, rows, first, last, packed_input, packed_hidden, d_gates_ih, d_gates_hh,
                           gradient_scratch + number * k.gradient_scratch, weight_sums, step_end == max_steps});
      });
      projection.add_weight_gradient(rows, step_end == max_steps, executor);
    }
    // Nothing is shared out there, but the scratch memory has a place for each member.
    const Team team = {plan.members, nullptr, nullptr};
    executor.run(plan.tasks(), [&](int64_t task) { k.finish_backward(backward_task(task, team, 0, 0, 0, nullptr)); });
    if (want_weights)
      share(executor, gate_panels, [&](int64_t first, int64_t last) {
        k.unpack_gradient(weight_sums, 4 * H, I, first, last, grad.d_weight_ih);
        k.unpack_gradient(weight_sums + I * stride, 4 * H, P, first, last, grad.d_weight_hh);
      });
    if (want_weights && options.weight_dropout > 0)
      share(executor, 4 * H, [&](int64_t first, int64_t last) {
        k.drop_weights(options, grad.d_weight_hh, P, first, last, grad.d_weight_hh);
      });
    if (want_weights) projection.finish_weight_gradient(grad.d_weight_hr, executor);
  }

  // The sums over rows, granule by granule: a fixed order.
  const auto reduce = [&](T* to, int64_t offset, int64_t parts) {
    if (!to) return;
    zero(to, parts * H);
    for (int64_t granule = 0; granule < plan.granules; ++granule)
      for (int64_t part = 0; part < parts; ++part)
        for (int64_t h = 0; h < H; ++h)
          to[part * H + h] += parameter_sums[granule * sums.size + offset + part * sums.padded_hidden + h];
  };
  reduce(grad.d_bias, sums.bias, 4);
  if (has_layer_norm(options)) {
    reduce(grad.d_weight_ln_ih, sums.ln_ih, 4);
    reduce(grad.d_weight_ln_hh, sums.ln_hh, 4);
    reduce(grad.d_weight_ln_c, sums.ln_c_weight, 1);
    reduce(grad.d_bias_ln_c, sums.ln_c_bias, 1);
  }
  if (options.peephole) {
    reduce(grad.d_weight_ci, sums.peepholes, 1);
    reduce(grad.d_weight_cf, sums.peepholes + sums.padded_hidden, 1);
    reduce(grad.d_weight_co, sums.peepholes + 2 * sums.padded_hidden, 1);
  }
}

#define LSTM_FUSED_INSTANTIATE(T)                                                                \
  template void layer_forward<T>(const LayerSizes&, const LayerOptions&, const LayerInputs<T>&,  \
                                 const LayerOutputs<T>&, const Executor&);                       \
  template void layer_backward<T>(const LayerSizes&, const LayerOptions&, const LayerInputs<T>&, \
                                  const LayerOutputs<T>&, const LayerGradients<T>&, const Executor&);
LSTM_FUSED_INSTANTIATE(float)
LSTM_FUSED_INSTANTIATE(double)
#undef LSTM_FUSED_INSTANTIATE

}  // namespace lstm_fused::cpu
