// The backward pass of a layer: segments of steps, the last one first; without `recompute` all steps are one. Of each
// the gate gradients are computed step by step, and then, in one product each, what they add to the weights' gradients.
#include <optional>
#include <vector>

#include "cuda/forward_pass.h"

namespace lstm_fused::cuda {

namespace {

// With `recompute`: the forward pass once more, a segment at a time. Each fills the same memory.
template <typename T>
class Replay {
 public:
  Replay(const Call<T>& call, const Forward& states, cudaStream_t stream)
      : call_(call),
        states_(states),
        h_(call.arguments.empty({call.sizes.batch, call.sizes.projection_size})),
        cell_(call.arguments.empty_accumulators({call.sizes.batch, call.sizes.hidden_size})),
        hidden_(call.arguments.empty({call.most_rows() + call.sizes.batch, call.sizes.projection_size})),
        steps_(call, without_output(call.options), h_, cell_, true, stream) {
    const int64_t rows = call.most_rows(), H = call.sizes.hidden_size;
    saved_.gates = call.arguments.empty({rows, 4 * H});
    saved_.cells = call.arguments.empty_accumulators({rows, H});
    if (call.norm) saved_.recurrent = call.arguments.empty({rows, 4 * H});
    if (call.norm) saved_.stats = call.arguments.empty_accumulators({rows, 6});
  }

  // What a forward pass saves of the steps of a segment, with h_t as the output: before its first step, or in reverse
  // after its last, there is the h that the segment started from.
  const Forward& run(const Segment& segment) {
    const int64_t B = call_.sizes.batch, P = call_.sizes.projection_size, H = call_.sizes.hidden_size;
    const bool reverse = call_.options.reverse;
    Tensor before = rows_of(hidden_, reverse ? segment.rows : 0, B, P), cell = cell_;
    torch::stable::copy_(before, rows_of(*states_.hidden, segment.number * B, B, P));
    steps_.start(pointer<T>(before), call_.in.c_0, segment.begin);
    torch::stable::copy_(cell, rows_of(*states_.cells, segment.number * B, B, H));
    saved_.output = rows_of(hidden_, reverse ? 0 : B, segment.rows, P);
    steps_.run(segment.begin, segment.end, saved_, segment.first);
    return saved_;
  }

 private:
  // The output is h_t then, and its masks are not drawn.
  static LayerOptions without_output(LayerOptions options) {
    options.dropout = 0;
    return options;
  }

  const Call<T>& call_;
  const Forward states_;
  const Tensor h_, cell_;
  const Tensor hidden_;  // [steps of a segment + 1, B, P]
  ForwardSteps<T> steps_;
  Forward saved_;
};

// A weight's gradient: the product of one segment, or the sum of those of several, in the accumulator's type.
class WeightGradient {
 public:
  WeightGradient(const Arguments& arguments, const MaybeTensor& out, int64_t segments)
      : accumulator_(accumulator_of(arguments.type)), out_(out) {
    if (!out) return;
    if (segments == 0) torch::stable::zero_(*out_);
    const bool own = segments > 0 && accumulator_ != arguments.type;
    sum_ = own ? arguments.empty_accumulators({out->size(0), out->size(1)}) : out;
    if (segments > 1) product_ = arguments.empty_accumulators({out->size(0), out->size(1)});
  }

  void add(const Tensor& a, const Tensor& b) {
    const bool first = !any_;
    any_ = true;
    multiply_in(accumulator_, first ? *sum_ : *product_, a, b);
    if (first) return;
    sum_ = reasoned("allocate a gradient", [&] { return torch::stable::subtract(*sum_, *product_, -1); });
  }

  void finish() {
    if (any_ && sum_->get() != out_->get()) torch::stable::copy_(*out_, *sum_);
  }

 private:
  const ScalarType accumulator_;
  MaybeTensor out_, sum_, product_;
  bool any_ = false;
};

// The backward steps, and what they leave for the products and sums after them: gradients of the steps of one segment
// at a time, [steps of a segment, B, ...] with the lowest t first.
template <typename T>
class BackwardSteps {
  using A = Accumulator<T>;

 public:
  BackwardSteps(const Call<T>& call, const Forward& saved, const Tensor& d_output, const Tensor& d_h_n,
                const Tensor& d_c_n, bool wants_weights, cudaStream_t stream)
      : unit_sum_count(wants_weights ? unit_sums(call.norm, call.options.peephole) : 0),
        d_gates_ih(call.arguments.empty({call.most_rows(), 4 * call.sizes.hidden_size})),
        d_gates_hh(call.norm ? call.arguments.empty({call.most_rows(), 4 * call.sizes.hidden_size}) : d_gates_ih),
        call_(call),
        saved_(saved),
        d_output_(d_output),
        d_h_n_(d_h_n),
        d_c_n_(d_c_n),
        stream_(stream),
        product_(call.arguments.empty({call.sizes.batch, call.sizes.projection_size})),
        d_cell_(call.arguments.empty_accumulators({call.sizes.batch, call.sizes.hidden_size})) {
    take_optional_memory(wants_weights);
    step_.sizes = call.sizes;
    step_.options = StepOptions<A>(call.options);
    step_.sequence = call.sequence;
    step_.seed = call.seed;
    step_.in = call.in;
    step_.d_h_n = pointer<T>(d_h_n_);
    step_.d_c_n = pointer<T>(d_c_n_);
    step_.product = pointer<T>(product_);
    step_.d_h_carry = pointer<A>(d_h_carry_);
    step_.d_cell = pointer<A>(d_cell_);
    step_.unit_sums = pointer<A>(unit_sums_of_rows);
    step_.d_unprojected = pointer<T>(d_unprojected_);
  }

  // The steps of a segment, last one first. `kept`: what the forward pass keeps of them; with `recompute` it was made
  // anew, and of c before the segment the call has kept the state.
  void run(const Segment& segment, const Forward& kept) {
    const int64_t B = call_.sizes.batch, H = call_.sizes.hidden_size, P = call_.sizes.projection_size;
    const A* const cells_before = call_.options.recompute > 0 ? pointer<A>(saved_.cells) : nullptr;
    step_.width =
        std::min(call_.inputs_width,
                 width_of<T>(call_.sizes, {pointer<T>(kept.gates), pointer<T>(kept.recurrent), pointer<A>(kept.cells),
                                           pointer<A>(saved_.cells), pointer<T>(d_output_), step_.d_h_n, step_.d_c_n}));
    step_.spill = call_.spill(backward_register_units<T>(step_.width), kBackwardSlots, spill_);
    for (int64_t s = segment.end - 1; s >= segment.begin && B > 0; --s) {
      const int64_t t = call_.time_of(s), row = (t - segment.first) * B;
      step_.t = t;
      step_.gates = pointer<T>(kept.gates) + row * 4 * H;
      step_.recurrent = call_.norm ? pointer<T>(kept.recurrent) + row * 4 * H : nullptr;
      step_.stats = call_.norm ? pointer<A>(kept.stats) + row * 6 : nullptr;
      if (s > segment.begin)
        step_.cells = pointer<A>(kept.cells) + (call_.time_of(s - 1) - segment.first) * B * H;
      else
        step_.cells = cells_before ? cells_before + segment.number * B * H : nullptr;
      step_.d_output = pointer<T>(d_output_) + t * B * P;
      step_.d_gates_ih = pointer<T>(d_gates_ih) + row * 4 * H;
      step_.d_gates_hh = pointer<T>(d_gates_hh) + row * 4 * H;
      step_.d_z = d_z ? pointer<T>(d_z) + row * 4 * H : nullptr;
      if (d_projected) run_projection(row);
      check(backward_step(step_, stream_));
      multiply(product_, rows_of(d_gates_hh, row, B, 4 * H), call_.weight_hh);
    }
  }

  // The gradient of the initial state, after the last product.
  void finish(const Gradients& grad) const {
    check(
        cuda::finish<T>({step_.sizes, step_.options, step_.sequence, step_.seed, step_.d_h_n, step_.d_c_n,
                         step_.product, step_.d_h_carry, step_.d_cell, pointer<T>(grad.d_h_0), pointer<T>(grad.d_c_0)},
                        stream_));
  }

  const int64_t unit_sum_count;         // per row: see unit_sums
  const Tensor d_gates_ih, d_gates_hh;  // [rows, 4H] the same without layer norm
  MaybeTensor d_z;                      // [rows, 4H] layer norm only, where the weights' gradients are wanted
  MaybeTensor d_projected;              // [rows, P] with a projection only, like the next
  MaybeTensor unprojected;              // [rows, H]
  MaybeTensor unit_sums_of_rows;        // [B, unit_sum_count, H], or null

 private:
  void take_optional_memory(bool wants_weights) {
    const Arguments& arguments = call_.arguments;
    const int64_t B = call_.sizes.batch, H = call_.sizes.hidden_size, P = call_.sizes.projection_size;
    if (call_.norm && wants_weights) d_z = arguments.empty({call_.most_rows(), 4 * H});
    if (unit_sum_count > 0) {
      const int64_t shape[] = {B, unit_sum_count, H};
      unit_sums_of_rows = reasoned("allocate a tensor", [&] {
        return torch::stable::new_zeros(*arguments.input, {shape, 3}, accumulator_of(arguments.type));
      });
    }
    if (call_.options.zoneout_h > 0 || (call_.options.reverse && call_.sequence.lengths))
      d_h_carry_ = arguments.empty_accumulators({B, P});
    if (!call_.options.projection) return;
    d_projected = arguments.empty({call_.most_rows(), P});
    d_unprojected_ = arguments.empty({B, H});
    unprojected = arguments.empty({call_.most_rows(), H});
  }

  // From the gradient of h_t to that of h', before the step's own kernel.
  void run_projection(int64_t row) {
    const int64_t B = call_.sizes.batch, H = call_.sizes.hidden_size, P = call_.sizes.projection_size;
    step_.d_projected = pointer<T>(d_projected) + row * P;
    step_.unprojected = pointer<T>(unprojected) + row * H;
    check(backward_project_step(step_, stream_));
    multiply(*d_unprojected_, rows_of(*d_projected, row, B, P), *call_.arguments.weight_hr);
  }

  const Call<T>& call_;
  const Forward& saved_;
  const Tensor d_output_, d_h_n_, d_c_n_;
  const cudaStream_t stream_;
  const Tensor product_, d_cell_;
  MaybeTensor spill_, d_h_carry_, d_unprojected_;
  BackwardStep<T> step_{};
};

// The gradients of the weights and of all that is summed over rows, from what the steps of each segment leave.
template <typename T>
class WeightGradients {
  using A = Accumulator<T>;

 public:
  WeightGradients(const Call<T>& call, const Gradients& grad, const BackwardSteps<T>& steps, cudaStream_t stream)
      : call_(call),
        grad_(grad),
        steps_(steps),
        stream_(stream),
        d_weight_ih_(call.arguments, grad.d_weight_ih, call.segments),
        d_weight_hh_(call.arguments, grad.d_weight_hh, call.segments),
        d_weight_hr_(call.arguments, grad.d_weight_hr, call.segments),
        hidden_(call.arguments.empty({call.most_rows(), call.sizes.projection_size})) {
    if (call.sequence.lengths) real_inputs_ = call.arguments.empty({call.most_rows(), call.sizes.input_size});
    columns_.sequence = call.sequence;
    columns_.rows = call.most_rows();
    columns_.columns = 4 * call.sizes.hidden_size;
    columns_.norms = call.norm;
    most_chunks_ = columns_.chunks();
    partial_ = call.arguments.empty_accumulators({call.segments * most_chunks_, columns_.sums(), columns_.columns});
  }

  // What the steps left is multiplied and summed over all of them at once.
  void add(const Segment& segment, const Forward& kept) {
    const int64_t H = call_.sizes.hidden_size, P = call_.sizes.projection_size, rows = segment.rows;
    const Tensor inputs = right_operands(segment, kept);
    d_weight_ih_.add(transposed(steps_.d_gates_ih, rows, 4 * H), inputs);
    d_weight_hh_.add(transposed(steps_.d_gates_hh, rows, 4 * H), rows_of(hidden_, 0, rows, P));
    if (steps_.d_projected)
      d_weight_hr_.add(transposed(*steps_.d_projected, rows, P), rows_of(*steps_.unprojected, 0, rows, H));
    add_columns(segment, kept);
  }

  void finish() {
    d_weight_ih_.finish();
    d_weight_hh_.finish();
    d_weight_hr_.finish();
    if (call_.drops_weight && call_.sizes.steps * call_.sizes.batch > 0)
      call_.mask_weight_hh(pointer<T>(grad_.d_weight_hh), *grad_.d_weight_hh, stream_);
    std::vector<T*> to = {pointer<T>(grad_.d_bias)};
    if (call_.norm) to.insert(to.end(), {pointer<T>(grad_.d_weight_ln_ih), pointer<T>(grad_.d_weight_ln_hh)});
    add_chunks(chunks_, columns_.columns, pointer<A>(partial_), to);
    if (steps_.unit_sum_count > 0) finish_unit_sums();
  }

 private:
  // Of the products: makes h~ of every step in hidden_, and returns the inputs.
  Tensor right_operands(const Segment& segment, const Forward& kept) {
    const int64_t B = call_.sizes.batch, I = call_.sizes.input_size, first = segment.first, rows = segment.rows;
    if (rows > 0) {
      Operand<T> operand{call_.sizes,
                         StepOptions<A>(call_.options),
                         call_.sequence,
                         first,
                         rows,
                         call_.seed,
                         call_.in.input + first * B * I,
                         call_.in.h_0,
                         pointer<T>(kept.hidden ? kept.hidden : kept.output),
                         1,
                         nullptr};
      if (real_inputs_) {
        operand.out = pointer<T>(real_inputs_);
        check(real_input(operand, stream_));
      }
      operand.out = pointer<T>(hidden_);
      operand.width = width_of<T>(call_.sizes, {operand.h_0, operand.hidden, operand.out});
      check(previous_hidden(operand, stream_));
    }
    return real_inputs_ ? rows_of(*real_inputs_, 0, rows, I) : rows_of(*call_.arguments.input, first * B, rows, I);
  }

  // The sums over rows of the gradients of the pre-activations, in chunks of rows.
  void add_columns(const Segment& segment, const Forward& kept) {
    columns_.first = segment.first;
    columns_.rows = segment.rows;
    columns_.values = pointer<T>(steps_.d_z ? *steps_.d_z : steps_.d_gates_ih);
    columns_.width = kLanes<T>;  // memory of torch's own, and rows of 4 H
    columns_.partial = pointer<A>(partial_) + segment.number * most_chunks_ * columns_.sums() * columns_.columns;
    if (call_.norm) {
      columns_.gates = pointer<T>(kept.gates);
      columns_.recurrent = pointer<T>(kept.recurrent);
      columns_.stats = pointer<A>(kept.stats);
      columns_.width = width_of<T>({0, 0, 0, 0, 0}, {columns_.gates, columns_.recurrent});
    }
    if (columns_.chunks() > 0) check(column_sums(columns_, stream_));
    if (segment.number + 1 == call_.segments) chunks_ = segment.number * most_chunks_ + columns_.chunks();
  }

  // What the kernels have summed over the steps, row by row: here over the rows.
  void finish_unit_sums() {
    ColumnSums<A> units{};
    units.sequence = {1, call_.sizes.batch, false, nullptr, nullptr};
    units.rows = call_.sizes.batch;
    units.columns = steps_.unit_sum_count * call_.sizes.hidden_size;
    units.values = pointer<A>(steps_.unit_sums_of_rows);
    units.width = units.columns % kLanes<A> == 0 ? kLanes<A> : 1;
    const Tensor partial = call_.arguments.empty_accumulators({units.chunks(), units.sums(), units.columns});
    units.partial = pointer<A>(partial);
    if (units.chunks() > 0) check(column_sums(units, stream_));
    std::vector<T*> to;
    if (call_.norm) to = {pointer<T>(grad_.d_weight_ln_c), pointer<T>(grad_.d_bias_ln_c)};
    if (call_.options.peephole)
      to.insert(to.end(),
                {pointer<T>(grad_.d_weight_ci), pointer<T>(grad_.d_weight_cf), pointer<T>(grad_.d_weight_co)});
    add_chunks(units.chunks(), call_.sizes.hidden_size, units.partial, to);
  }

  void add_chunks(int64_t count, int64_t size, A* partial, const std::vector<T*>& to) const {
    ChunkSums<T> all{count, static_cast<int64_t>(to.size()), size, partial, {}};
    std::copy(to.begin(), to.end(), all.out);
    check(chunk_sums(all, stream_));
  }

  const Call<T>& call_;
  const Gradients& grad_;
  const BackwardSteps<T>& steps_;
  const cudaStream_t stream_;
  WeightGradient d_weight_ih_, d_weight_hh_, d_weight_hr_;
  const Tensor hidden_;                   // [rows, P] h~_{t-1} of a segment's steps
  MaybeTensor real_inputs_, partial_;     // [rows, I] where there are lengths; of the sums over rows
  ColumnSums<T> columns_{};               // of the segment that was added last
  int64_t most_chunks_ = 0, chunks_ = 0;  // of a segment; of all
};

}  // namespace

template <typename T>
void layer_backward(const Arguments& arguments, const Forward& saved, const Tensor& d_output, const Tensor& d_h_n,
                    const Tensor& d_c_n, const Gradients& grad, cudaStream_t stream) {
  const Call<T> call(arguments, stream);
  const int64_t B = call.sizes.batch, I = call.sizes.input_size, H = call.sizes.hidden_size;
  const bool wants_weights = grad.d_bias.has_value();
  BackwardSteps<T> steps(call, saved, d_output, d_h_n, d_c_n, wants_weights, stream);
  std::optional<Replay<T>> replay;
  if (call.options.recompute > 0 && B > 0) replay.emplace(call, saved, stream);
  std::optional<WeightGradients<T>> weights;
  if (wants_weights) weights.emplace(call, grad, steps, stream);

  for (int64_t number = call.segments - 1; number >= 0; --number) {
    const Segment segment = call.segment(number);
    const Forward& kept = replay ? replay->run(segment) : saved;
    steps.run(segment, kept);
    if (grad.d_input)
      multiply(rows_of(*grad.d_input, segment.first * B, segment.rows, I),
               rows_of(steps.d_gates_ih, 0, segment.rows, 4 * H), *arguments.weight_ih);
    if (weights) weights->add(segment, kept);
  }
  if (B > 0) steps.finish(grad);
  if (weights) weights->finish();
}

#define LSTM_FUSED_INSTANTIATE(T)                                                                                \
  template void layer_backward<T>(const Arguments&, const Forward&, const Tensor&, const Tensor&, const Tensor&, \
                                  const Gradients&, cudaStream_t);
LSTM_FUSED_INSTANTIATE(float)
LSTM_FUSED_INSTANTIATE(double)
LSTM_FUSED_INSTANTIATE(__half)
LSTM_FUSED_INSTANTIATE(__nv_bfloat16)
#undef LSTM_FUSED_INSTANTIATE

}  // namespace lstm_fused::cuda
