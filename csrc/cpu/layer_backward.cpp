// The backward pass of a layer: chunks of steps, the last one first. Of each the gate gradients are computed step by
// step, and then, in one product, the part of the weight gradients that they make.
#include <optional>

#include "cpu/forward_pass.h"
#include "cpu/projection_gradient.h"

namespace lstm_fused::cpu {
namespace {

// Steps x rows whose gate gradients are kept at a time: few stay in the second-level cache, many share one pass over
// the sums of the weight gradients. Twice the hidden size, within this bound and the kernels' own.
constexpr int64_t kMinChunkRows = 256;

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
  // The output is not wanted: its masks are not drawn.
  static LayerOptions without_output(LayerOptions options) {
    options.dropout = 0;
    return options;
  }

  const LayerSizes& sizes_;
  const LayerInputs<T> in_;
  const LayerSaved<T> states_;
  const ForwardPass<T> pass_;
};

// The steps that are kept at a time. Without recomputation the one segment is the sequence.
template <typename T>
class BackwardPass {
 public:
  // `in` with weight_hh as the recurrence uses it.
  BackwardPass(const LayerSizes& sizes, const LayerOptions& options, const LayerInputs<T>& in,
               const LayerOutputs<T>& out, const LayerGradients<T>& grad, const Plan& plan, T* parameter_sums,
               Workspace& workspace, const Executor& executor)
      : k_(kernels_for<T>(options)),
        sizes_(sizes),
        options_(options),
        in_(in),
        grad_(grad),
        plan_(plan),
        executor_(executor),
        want_weights_(grad.d_weight_ih != nullptr),
        max_steps_(plan.max_steps()),
        chunk_steps_(steps_of_a_chunk()),
        stride_(k_.gradient_stride(4 * sizes.hidden_size)),
        gate_panels_(k_.plain_panels(4 * sizes.hidden_size)),
        projection_(k_, sizes, options, chunk_steps_ * sizes.batch, want_weights_, workspace, executor),
        bias_(sum_of_biases(in, 4 * sizes.hidden_size, workspace)),
        parameter_sums_(parameter_sums),
        chunk_offset_(chunk_steps_) {
    pack_weights(workspace);
    take_gate_gradients(workspace);
    if (options.recompute > 0) replay_.emplace(sizes, options, in, out.saved, plan, workspace, executor);
    saved_ = replay_ ? replay_->saved : out.saved;
    if (!saved_.hidden) saved_.hidden = out.output;
    saved_steps_ = replay_ ? replay_->steps : sizes.steps;
    take_left_operands(workspace);
    for (int64_t task = 0; task < plan.tasks(); ++task)
      scratch_.push_back(workspace.take<char>(k_.backward_scratch(sizes, options, plan.rows(task), plan.members)));
  }

  void run() {
    for (int64_t step_end = max_steps_; step_end > 0; step_end -= chunk_steps_)
      run_chunk(std::max<int64_t>(0, step_end - chunk_steps_), step_end);
    // The team runs no loop there, but the scratch memory has a place for each member.
    const Team team = {plan_.members, nullptr, nullptr};
    executor_.run(plan_.tasks(), [&](int64_t task) { k_.finish_backward(task_of(task, team, 0, 0, 0, nullptr)); });
    if (want_weights_) finish_weight_gradients();
  }

 private:
  int64_t steps_of_a_chunk() const {
    const int64_t rows = std::min(k_.max_chunk_rows, std::max(kMinChunkRows, 2 * sizes_.hidden_size));
    return std::min(max_steps_, std::max<int64_t>(1, rows / sizes_.batch));
  }
  int64_t chunk_rows() const { return chunk_steps_ * sizes_.batch; }

  void pack_weights(Workspace& workspace) {
    const auto [T_, B, I, H, P] = sizes_;
    const int64_t panel_size = k_.panel_columns * operands(k_, 4 * H);
    void* const packed_hh = workspace.take<T>(k_.plain_panels(P) * panel_size);
    parallel_for(executor_, k_.plain_panels(P), [&, H = H, P = P](int64_t first, int64_t last) {
      k_.pack_plain(in_.weight_hh, 4 * H, P, first, last, packed_hh);
    });
    packed_hh_ = packed_hh;
    projection_.pack(in_.weight_hr, executor_);
    if (!grad_.d_input) return;
    void* const packed_ih = workspace.take<T>(k_.plain_panels(I) * panel_size);
    parallel_for(executor_, k_.plain_panels(I), [&, I = I, H = H](int64_t first, int64_t last) {
      k_.pack_plain(in_.weight_ih, 4 * H, I, first, last, packed_ih);
    });
    packed_ih_ = packed_ih;
  }

  void take_gate_gradients(Workspace& workspace) {
    const int64_t gates = 4 * sizes_.hidden_size;
    d_gates_ih_ = workspace.take<T>(chunk_rows() * stride_);
    d_gates_hh_ = has_layer_norm(options_) ? workspace.take<T>(chunk_rows() * stride_) : d_gates_ih_;
    // Columns past 4H are read as part of a panel; their products are never used.
    for (int64_t row = 0; row < chunk_rows(); ++row) {
      zero(d_gates_ih_ + row * stride_ + gates, stride_ - gates);
      zero(d_gates_hh_ + row * stride_ + gates, stride_ - gates);
    }
  }

  // What the weight gradients multiply the gate gradients with: the inputs and previous hidden states of a chunk.
  void take_left_operands(Workspace& workspace) {
    const int64_t I = sizes_.input_size, P = sizes_.projection_size;
    mask_stride_ = k_.scratch_stride(sizes_);
    hidden_mask_ = workspace.take<T>(options_.recurrent_dropout > 0 ? sizes_.batch * mask_stride_ : 0);
    zeros_ = workspace.take<T>(in_.reset ? P : 0);
    zero(zeros_, P);
    inputs_.resize(chunk_rows());
    hiddens_.resize(chunk_rows());
    masks_.resize(hidden_mask_ ? chunk_rows() : 0);
    if (!want_weights_) return;
    const int64_t row_groups = operands(k_, chunk_rows());
    packed_input_ = workspace.take<T>(row_groups * I);
    packed_hidden_ = workspace.take<T>(row_groups * P);
    gradient_scratch_ = workspace.take<T>(parallel_tasks(executor_, gate_panels_) * k_.gradient_scratch);
    weight_sums_ = workspace.take<T>((I + P) * stride_);
    kept_hidden_ = workspace.take<T>(replay_ ? chunk_rows() * P : 0);
  }

  BackwardTask<T> task_of(int64_t task, const Team& team, int64_t segment, int64_t step_begin, int64_t step_end,
                          const int64_t* offset) const {
    return {sizes_,
            options_,
            replay_ ? replay_->inputs(segment) : in_,
            saved_,
            saved_steps_,
            segment * saved_steps_,
            grad_,
            plan_.order(),
            plan_.task_begin[task],
            plan_.task_begin[task + 1],
            step_begin,
            step_end,
            step_end == max_steps_,
            offset,
            packed_ih_,
            packed_hh_,
            projection_.packed_hr,
            projection_.d_hidden,
            projection_.unprojected,
            bias_,
            d_gates_ih_,
            d_gates_hh_,
            parameter_sums_,
            plan_.reduction_block_rows,
            hidden_mask_,
            team,
            scratch_[task]};
  }

  void run_chunk(int64_t step_begin, int64_t step_end) {
    int64_t rows = 0, active = sizes_.batch;
    for (int64_t s = step_begin; s < step_end; ++s) {
      while (plan_.length[active - 1] <= s) --active;
      chunk_offset_[s - step_begin] = rows;
      rows += active;
    }
    // The part of the chunk that lies in one segment.
    for (int64_t part_end = step_end, part_begin; part_end > step_begin; part_end = part_begin) {
      const int64_t segment = (part_end - 1) / saved_steps_;
      part_begin = std::max(step_begin, segment * saved_steps_);
      const bool enters_segment = part_end == max_steps_ || part_end % saved_steps_ == 0;
      const int64_t* const offset = &chunk_offset_[part_begin - step_begin];
      run_teams(executor_, plan_.tasks(), plan_.members, [&](int64_t task, const Team& team) {
        if (replay_ && enters_segment) replay_->run(task, team, segment);
        k_.backward(task_of(task, team, segment, part_begin, part_end, offset));
      });
      if (want_weights_) collect_left_operands(segment, part_begin, part_end, *offset);
    }
    if (!want_weights_) return;
    add_weight_gradients(rows, step_end == max_steps_);
    projection_.add_weight_gradient(rows, step_end == max_steps_, executor_);
  }

  // Of steps [begin, end) of a segment: where x_t and h_{t-1} are, from row n of the chunk on.
  void collect_left_operands(int64_t segment, int64_t begin, int64_t end, int64_t n) {
    const int64_t B = sizes_.batch, I = sizes_.input_size, P = sizes_.projection_size;
    const T* const h_start = replay_ ? replay_->inputs(segment).h_0 : in_.h_0;
    for (int64_t s = begin; s < end; ++s)
      for (int64_t r = 0; r < B && plan_.length[r] > s; ++r, ++n) {
        const int64_t b = plan_.batch_index[r], t = options_.reverse ? plan_.length[r] - 1 - s : s;
        const int64_t t_prev = options_.reverse ? t + 1 : t - 1;
        inputs_[n] = in_.input + (t * B + b) * I;
        hiddens_[n] =
            s == segment * saved_steps_ ? h_start + b * P : saved_.hidden + (t_prev % saved_steps_ * B + b) * P;
        if (kept_hidden_) hiddens_[n] = static_cast<T*>(std::memcpy(kept_hidden_ + n * P, hiddens_[n], sizeof(T) * P));
        if (in_.reset && in_.reset[t * B + b]) hiddens_[n] = zeros_;
        if (hidden_mask_) masks_[n] = hidden_mask_ + r * mask_stride_;
      }
  }

  // [d_W_ih d_W_hh]^T += [x | h~]^T d_gates of a chunk.
  void add_weight_gradients(int64_t rows, bool first_chunk) {
    const int64_t I = sizes_.input_size, P = sizes_.projection_size;
    parallel_for(executor_, ceil_div(rows, k_.gradient_block), [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        const int64_t row = block * k_.gradient_block, count = std::min(k_.gradient_block, rows - row);
        k_.pack_transposed(inputs_.data(), nullptr, row, count, I, packed_input_);
        k_.pack_transposed(hiddens_.data(), hidden_mask_ ? masks_.data() : nullptr, row, count, P, packed_hidden_);
      }
    });
    parallel_for_numbered(executor_, gate_panels_, [&](int64_t number, int64_t first, int64_t last) {
      k_.weight_gradient({I, P, stride_, rows, first, last, packed_input_, packed_hidden_, d_gates_ih_, d_gates_hh_,
                          gradient_scratch_ + number * k_.gradient_scratch, weight_sums_, first_chunk});
    });
  }

  void finish_weight_gradients() {
    const int64_t I = sizes_.input_size, H = sizes_.hidden_size, P = sizes_.projection_size;
    parallel_for(executor_, gate_panels_, [&](int64_t first, int64_t last) {
      k_.unpack_gradient(weight_sums_, 4 * H, I, first, last, grad_.d_weight_ih);
      k_.unpack_gradient(weight_sums_ + I * stride_, 4 * H, P, first, last, grad_.d_weight_hh);
    });
    if (options_.weight_dropout > 0)
      parallel_for(executor_, 4 * H, [&](int64_t first, int64_t last) {
        k_.drop_weights(options_, grad_.d_weight_hh, P, first, last, grad_.d_weight_hh);
      });
    projection_.finish_weight_gradient(grad_.d_weight_hr, executor_);
  }

  const Kernels<T>& k_;
  const LayerSizes& sizes_;
  const LayerOptions& options_;
  const LayerInputs<T> in_;
  const LayerGradients<T>& grad_;
  const Plan& plan_;
  const Executor& executor_;
  const bool want_weights_;
  const int64_t max_steps_, chunk_steps_, stride_, gate_panels_;
  ProjectionGradient<T> projection_;
  const T* const bias_;
  T* const parameter_sums_;
  const void *packed_ih_ = nullptr, *packed_hh_ = nullptr;  // ih: null where no input gradient is wanted
  T *d_gates_ih_, *d_gates_hh_;                             // [rows of the chunk, stride]

  // What the kernels read of the forward pass: all of it, or one segment after the other.
  std::optional<Replay<T>> replay_;
  LayerSaved<T> saved_;
  int64_t saved_steps_;  // of a segment

  // Of the rows of a chunk, where the weight gradients' left operands are.
  std::vector<const T*> inputs_, hiddens_, masks_;
  std::vector<int64_t> chunk_offset_;  // of a step's first row
  int64_t mask_stride_;
  T* hidden_mask_;            // of recurrent dropout, or null
  T* zeros_;                  // h_{t-1} after a reset
  T* kept_hidden_ = nullptr;  // h_{t-1} of a chunk that may have several segments; else it stays where it is saved
  void *packed_input_ = nullptr, *packed_hidden_ = nullptr;
  T *gradient_scratch_ = nullptr, *weight_sums_ = nullptr;
  std::vector<char*> scratch_;
};

// The gradients that are sums over rows, added up reduction block by reduction block: a fixed order.
template <typename T>
void reduce_parameter_sums(const LayerSizes& sizes, const LayerOptions& options, const ParameterSums& sums,
                           const T* parameter_sums, int64_t reduction_blocks, const LayerGradients<T>& grad) {
  const int64_t H = sizes.hidden_size;
  const auto reduce = [&](T* to, int64_t offset, int64_t parts) {
    if (!to) return;
    zero(to, parts * H);
    for (int64_t reduction_block = 0; reduction_block < reduction_blocks; ++reduction_block)
      for (int64_t part = 0; part < parts; ++part)
        for (int64_t h = 0; h < H; ++h)
          to[part * H + h] += parameter_sums[reduction_block * sums.size + offset + part * sums.padded_hidden + h];
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

// No step of any sequence runs: the state's gradient passes through, and the weights have none.
template <typename T>
void backward_of_nothing(const LayerSizes& sizes, const LayerGradients<T>& grad) {
  const auto [T_, B, I, H, P] = sizes;
  if (B > 0) {
    std::memcpy(grad.d_h_0, grad.d_h_n, sizeof(T) * B * P);
    std::memcpy(grad.d_c_0, grad.d_c_n, sizeof(T) * B * H);
  }
  zero(grad.d_weight_ih, 4 * H * I);
  zero(grad.d_weight_hh, 4 * H * P);
  zero(grad.d_weight_hr, P * H);
}

}  // namespace

template <typename T>
void layer_backward(const LayerSizes& sizes, const LayerOptions& given, const LayerInputs<T>& given_in,
                    const LayerOutputs<T>& out, const LayerGradients<T>& grad, const Executor& executor) {
  const LayerOptions options = effective(sizes, given);
  const Kernels<T>& k = kernels_for<T>(options);
  LayerInputs<T> in = given_in;
  const Plan plan = make_plan<T>(sizes, options, in.lengths, executor);

  zero_padding(sizes, in.lengths, sizes.input_size, grad.d_input, executor);
  Workspace& workspace = Workspace::of_this_thread();
  const Workspace::Call call(workspace);
  const ParameterSums sums = k.parameter_sums(sizes.hidden_size, options);
  T* const parameter_sums = workspace.take<T>(plan.reduction_blocks * sums.size);
  zero(parameter_sums, plan.reduction_blocks * sums.size);
  if (plan.max_steps() > 0) {
    in.weight_hh = dropped_weight(k, sizes, options, in.weight_hh, workspace, executor);
    BackwardPass<T>(sizes, options, in, out, grad, plan, parameter_sums, workspace, executor).run();
  } else {
    backward_of_nothing(sizes, grad);
  }
  reduce_parameter_sums(sizes, options, sums, parameter_sums, plan.reduction_blocks, grad);
}

template void layer_backward<float>(const LayerSizes&, const LayerOptions&, const LayerInputs<float>&,
                                    const LayerOutputs<float>&, const LayerGradients<float>&, const Executor&);
template void layer_backward<double>(const LayerSizes&, const LayerOptions&, const LayerInputs<double>&,
                                     const LayerOutputs<double>&, const LayerGradients<double>&, const Executor&);

}  // namespace lstm_fused::cpu
