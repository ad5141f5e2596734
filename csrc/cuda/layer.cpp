#include "cuda/layer.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>

#include "cuda/kernels.h"

namespace lstm_fused::cuda {

namespace {

void check(cudaError_t error) {
  if (error != cudaSuccess) fail("CUDA could not launch a kernel: ", cudaGetErrorString(error));
}

template <typename T>
T* pointer(const MaybeTensor& tensor) {
  return tensor && tensor->numel() ? static_cast<T*>(tensor->mutable_data_ptr()) : nullptr;
}

// The matrix of these sizes and strides in a tensor, from element `first` on. No dispatcher: a step takes microseconds.
Tensor view_of(const Tensor& tensor, std::array<int64_t, 2> sizes, std::array<int64_t, 2> strides, int64_t first) {
  AtenTensorHandle view = nullptr;
  if (aoti_torch__reinterpret_tensor(tensor.get(), 2, sizes.data(), strides.data(), first, &view) != 0)
    fail("torch could not make a view of a tensor", reason_of_torch());
  return Tensor(view);
}

// Rows [first, first + rows) of a contiguous tensor that is seen as a matrix.
Tensor rows_of(const Tensor& tensor, int64_t first, int64_t rows, int64_t columns) {
  return view_of(tensor, {rows, columns}, {columns, 1}, first * columns);
}

// Its transpose, [columns, rows].
Tensor transposed(const Tensor& tensor, int64_t rows, int64_t columns) {
  return view_of(tensor, {columns, rows}, {1, columns}, 0);
}

// aten::mm.out of CUDA as a C function. A call by the dispatcher, which looks for the operator by its name and packs
// its arguments, takes a microsecond more, at every step. torch promises nothing about this function: where it has
// none, the dispatcher does it.
using MmOut = AOTITorchError (*)(AtenTensorHandle out, AtenTensorHandle a, AtenTensorHandle b);
MmOut mm_out() {
  static const auto found = reinterpret_cast<MmOut>(dlsym(RTLD_DEFAULT, "aoti_torch_cuda_mm_out"));
  return by_dispatcher ? nullptr : found;
}

[[noreturn]] void fail_to_multiply() { fail("torch could not multiply two matrices", reason_of_torch()); }

// out = a b, on torch's current stream.
void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
  if (const MmOut direct = mm_out()) {
    if (direct(out.get(), a.get(), b.get()) != 0) fail_to_multiply();
    return;
  }
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out)};
  if (torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION) != 0) fail_to_multiply();
  torch::stable::detail::to<Tensor>(stack[0]);  // takes back the reference to `out`
}

// out = a b, in float32 of what is in half precision: cuBLAS may otherwise add parts of long sums in half precision.
void multiply_in(ScalarType accumulator, const Tensor& out, const Tensor& a, const Tensor& b) {
  if (a.scalar_type() == accumulator) return multiply(out, a, b);
  std::array<StableIValue, 4> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(accumulator), torch::stable::detail::from(out)};
  if (torch_call_dispatcher("aten::mm", "dtype_out", stack.data(), TORCH_ABI_VERSION) != 0) fail_to_multiply();
  torch::stable::detail::to<Tensor>(stack[0]);
}

// The most units that a vector can have, if rows of P and of H units at these addresses are moved in them: kLanes, 2
// or 1.
template <typename T>
int width_of(const LayerSizes& sizes, std::initializer_list<const void*> addresses) {
  for (const int width : {kLanes<T>, 2}) {
    const auto fits = [&](const void* address) {
      return reinterpret_cast<uintptr_t>(address) % (width * sizeof(Accumulator<T>)) == 0;
    };
    if (sizes.hidden_size % width == 0 && sizes.projection_size % width == 0 &&
        std::all_of(addresses.begin(), addresses.end(), fits))
      return width;
  }
  return 1;
}

// What forward and backward share: the arguments as the kernels take them.
template <typename T>
struct Call {
  LayerSizes sizes;
  LayerOptions options;
  Sequence sequence;
  LayerInputs<T> in;
  const int64_t* seed;
  bool norm, drops_weight, drops_hidden;
  int64_t segments;  // with `recompute`; otherwise all steps are one
  int inputs_width;  // of the arguments that the steps read
  const Arguments& arguments;
  Tensor weight_hh;  // [4H, P] as the steps use it: with weight dropout, in training, a masked copy

  Call(const Arguments& arguments, cudaStream_t stream)
      : sizes(arguments.sizes),
        options(arguments.options),
        sequence{sizes.steps, sizes.batch, options.reverse, pointer<int64_t>(arguments.lengths),
                 pointer<bool>(arguments.reset)},
        seed(pointer<int64_t>(arguments.seed)),
        norm(has_layer_norm(options)),
        drops_weight(options.training && options.weight_dropout > 0),
        drops_hidden(options.training && options.recurrent_dropout > 0),
        segments(options.recompute > 0 ? lstm_fused::segments(sizes, options) : sizes.steps > 0),
        arguments(arguments),
        weight_hh(*arguments.weight_hh) {
    in.input = pointer<T>(arguments.input);
    in.h_0 = pointer<T>(arguments.h_0);
    in.c_0 = pointer<T>(arguments.c_0);
    in.weight_ih = pointer<T>(arguments.weight_ih);
    in.weight_hh = pointer<T>(arguments.weight_hh);
    in.bias_ih = pointer<T>(arguments.bias_ih);
    in.bias_hh = pointer<T>(arguments.bias_hh);
    in.weight_ln_ih = pointer<T>(arguments.weight_ln_ih);
    in.weight_ln_hh = pointer<T>(arguments.weight_ln_hh);
    in.weight_ln_c = pointer<T>(arguments.weight_ln_c);
    in.bias_ln_c = pointer<T>(arguments.bias_ln_c);
    in.weight_hr = pointer<T>(arguments.weight_hr);
    in.weight_ci = pointer<T>(arguments.weight_ci);
    in.weight_cf = pointer<T>(arguments.weight_cf);
    in.weight_co = pointer<T>(arguments.weight_co);
    in.lengths = sequence.lengths;
    in.reset = sequence.reset;
    inputs_width =
        width_of<T>(sizes, {in.h_0, in.c_0, in.weight_hh, in.bias_ih, in.bias_hh, in.weight_ln_ih, in.weight_ln_hh,
                            in.weight_ln_c, in.bias_ln_c, in.weight_ci, in.weight_cf, in.weight_co});
    if (drops_weight && sizes.batch > 0) {
      weight_hh = arguments.empty({4 * sizes.hidden_size, sizes.projection_size});
      mask_weight_hh(in.weight_hh, weight_hh, stream);
    }
  }

  // Steps are counted in the order in which they run: where a segment begins, and the one before ends.
  int64_t begin_of(int64_t segment) const { return segment < segments ? segment * options.recompute : sizes.steps; }
  int64_t time_of(int64_t s) const { return options.reverse ? sizes.steps - 1 - s : s; }
  // The lowest t of steps [begin, end).
  int64_t first_time(int64_t begin, int64_t end) const { return options.reverse ? sizes.steps - end : begin; }

  void mask_weight_hh(const T* from, const Tensor& to, cudaStream_t stream) const {
    T* const out = static_cast<T*>(to.mutable_data_ptr());
    check(mask_weight<T>(
        {sizes, StepOptions<Accumulator<T>>(options), seed, width_of<T>(sizes, {from, out}), from, out}, stream));
  }

  // Where layer norm keeps rows that are too long for the registers of a block; `memory` is made when it is needed.
  Accumulator<T>* overflow(int64_t register_units, int64_t slots, MaybeTensor& memory) const {
    if (!norm || sizes.hidden_size <= register_units) return nullptr;
    if (!memory) memory = arguments.empty_accumulators({sizes.batch, slots, sizes.hidden_size});
    return pointer<Accumulator<T>>(memory);
  }
};

// Runs of forward steps, each from the state that the one before has left in h [B, P] and cell [B, H].
template <typename T>
class ForwardSteps {
  using A = Accumulator<T>;

 public:
  ForwardSteps(const Call<T>& call, const LayerOptions& options, const Tensor& h, const Tensor& cell, bool saves,
               cudaStream_t stream)
      : call_(call),
        stream_(stream),
        h_(h),
        cell_(cell),
        operand_(has_own_operand(call) ? call.arguments.empty({call.sizes.batch, call.sizes.projection_size}) : h),
        weight_ih_t_(transposed(*call.arguments.weight_ih, 4 * call.sizes.hidden_size, call.sizes.input_size)),
        weight_hh_t_(transposed(call.weight_hh, 4 * call.sizes.hidden_size, call.sizes.projection_size)) {
    const int64_t B = call.sizes.batch, H = call.sizes.hidden_size, P = call.sizes.projection_size;
    if (!saves || !call.norm) recurrent_ = call.arguments.empty({B, 4 * H});
    if (options.projection) {
      unprojected_ = call.arguments.empty({B, H});
      projected_ = call.arguments.empty({B, P});
      weight_hr_t_ = transposed(*call.arguments.weight_hr, P, H);
    }
    step_.sizes = call.sizes;
    step_.options = StepOptions<A>(options);
    step_.sequence = call.sequence;
    step_.seed = call.seed;
    step_.in = call.in;
    step_.saves = saves;
    step_.h = pointer<T>(h_);
    step_.operand = has_own_operand(call) ? pointer<T>(operand_) : nullptr;
    step_.cell = pointer<A>(cell_);
    step_.unprojected = pointer<T>(unprojected_);
    step_.projected = pointer<T>(projected_);
  }

  // The state before step `begin`; steps are counted in the order in which they run. The cell is c_0's, in its type.
  void start(const T* h_0, const T* c_0, int64_t begin) {
    check(cuda::start<T>({step_.sizes, step_.options, step_.sequence, call_.time_of(begin), step_.seed, h_0, c_0,
                          step_.h, step_.operand, step_.cell},
                         stream_));
  }

  // Steps [begin, end). The tensors of `out` begin with step t = `first`.
  void run(int64_t begin, int64_t end, const Forward& out, int64_t first) {
    const int64_t B = call_.sizes.batch, I = call_.sizes.input_size, H = call_.sizes.hidden_size,
                  P = call_.sizes.projection_size;
    if (begin == end) return;
    const bool saves = step_.saves;
    const int64_t chunk_steps = saves ? end - begin : std::clamp<int64_t>(chunk_values / (4 * B * H), 1, end - begin);
    const Tensor gates = saves ? *out.gates : call_.arguments.empty({chunk_steps, B, 4 * H});
    const Tensor& recurrent = recurrent_ ? *recurrent_ : *out.recurrent;
    step_.width = std::min(call_.inputs_width,
                           width_of<T>(call_.sizes, {step_.h, step_.operand, step_.cell, pointer<T>(out.output)}));
    step_.overflow = call_.overflow(register_units<T>(step_.width), kForwardSlots, overflow_);
    for (int64_t chunk = begin; chunk < end; chunk += chunk_steps) {
      const int64_t count = std::min(chunk_steps, end - chunk), chunk_first = call_.first_time(chunk, chunk + count);
      multiply(rows_of(gates, 0, count * B, 4 * H), rows_of(*call_.arguments.input, chunk_first * B, count * B, I),
               weight_ih_t_);
      for (int64_t s = chunk; s < chunk + count; ++s) {
        const int64_t t = call_.time_of(s), row = (t - first) * B, recurrent_row = recurrent_ ? 0 : row;
        multiply(rows_of(recurrent, recurrent_row, B, 4 * H), operand_, weight_hh_t_);
        step_.t = t;
        step_.gates = pointer<T>(gates) + (t - chunk_first) * B * 4 * H;
        step_.recurrent = pointer<T>(recurrent) + recurrent_row * 4 * H;
        step_.stats = out.stats ? pointer<A>(out.stats) + row * 6 : nullptr;
        step_.cells = saves && out.cells ? pointer<A>(out.cells) + row * H : nullptr;
        step_.hidden = saves && out.hidden ? pointer<T>(out.hidden) + row * P : nullptr;
        step_.output = pointer<T>(out.output) + row * P;
        check(forward_step(step_, stream_));
        if (unprojected_) {
          multiply(*projected_, *unprojected_, *weight_hr_t_);
          check(project_step(step_, stream_));
        }
      }
    }
  }

 private:
  static bool has_own_operand(const Call<T>& call) { return call.drops_hidden || call.sequence.reset; }

  const Call<T>& call_;
  const cudaStream_t stream_;
  const Tensor h_, cell_;
  const Tensor operand_;  // [B, P] h~, the left operand of the product with W_hh
  const Tensor weight_ih_t_, weight_hh_t_;
  MaybeTensor overflow_, recurrent_, unprojected_, projected_, weight_hr_t_;
  ForwardStep<T> step_{};
};

// With `recompute`: the forward pass once more, a segment at a time. Each fills the same memory.
template <typename T>
class Replay {
 public:
  Replay(const Call<T>& call, const Forward& states, cudaStream_t stream)
      : call_(call),
        states_(states),
        h_(call.arguments.empty({call.sizes.batch, call.sizes.projection_size})),
        cell_(call.arguments.empty_accumulators({call.sizes.batch, call.sizes.hidden_size})),
        hidden_(call.arguments.empty({(call.begin_of(1) + 1) * call.sizes.batch, call.sizes.projection_size})),
        steps_(call, without_output(call.options), h_, cell_, true, stream) {
    const int64_t rows = call.begin_of(1) * call.sizes.batch, H = call.sizes.hidden_size;
    saved_.gates = call.arguments.empty({rows, 4 * H});
    saved_.cells = call.arguments.empty_accumulators({rows, H});
    if (call.norm) saved_.recurrent = call.arguments.empty({rows, 4 * H});
    if (call.norm) saved_.stats = call.arguments.empty_accumulators({rows, 6});
  }

  // What a forward pass saves of the steps of a segment, with h_t as the output: before its first step, or in reverse
  // after its last, there is the h that the segment started from.
  const Forward& run(int64_t segment) {
    const int64_t B = call_.sizes.batch, P = call_.sizes.projection_size, H = call_.sizes.hidden_size;
    const int64_t begin = call_.begin_of(segment), end = call_.begin_of(segment + 1);
    const bool reverse = call_.options.reverse;
    Tensor before = rows_of(hidden_, reverse ? (end - begin) * B : 0, B, P), cell = cell_;
    torch::stable::copy_(before, rows_of(*states_.hidden, segment * B, B, P));
    steps_.start(pointer<T>(before), call_.in.c_0, begin);
    torch::stable::copy_(cell, rows_of(*states_.cells, segment * B, B, H));
    saved_.output = rows_of(hidden_, reverse ? 0 : B, (end - begin) * B, P);
    steps_.run(begin, end, saved_, call_.first_time(begin, end));
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

}  // namespace

template <typename T>
void layer_forward(const Arguments& arguments, const Forward& out, cudaStream_t stream) {
  const Call<T> call(arguments, stream);
  const int64_t steps = call.sizes.steps, B = call.sizes.batch, H = call.sizes.hidden_size,
                P = call.sizes.projection_size;
  if (B == 0) return;

  // The state: h in h_n, c in c_n where that is of the type it is computed in.
  const bool saves = out.gates.has_value(), saves_states = !saves && out.cells;
  const bool own_cell = accumulator_of(arguments.type) != arguments.type;
  const Tensor h = *out.h_n, cell = own_cell ? arguments.empty_accumulators({B, H}) : *out.c_n;
  ForwardSteps<T> pass(call, call.options, h, cell, saves, stream);
  pass.start(call.in.h_0, call.in.c_0, 0);
  const auto save_state = [&](int64_t number) {
    Tensor saved_h = rows_of(*out.hidden, number * B, B, P), saved_cell = rows_of(*out.cells, number * B, B, H);
    torch::stable::copy_(saved_h, h);
    torch::stable::copy_(saved_cell, cell);
  };
  if (saves_states) {
    for (int64_t segment = 0; segment < call.segments; ++segment) {
      save_state(segment);
      pass.run(call.begin_of(segment), call.begin_of(segment + 1), out, 0);
    }
    save_state(call.segments);
  } else {
    pass.run(0, steps, out, 0);
  }
  if (own_cell) {
    Tensor c_n = *out.c_n;
    torch::stable::copy_(c_n, cell);
  }
}

template <typename T>
void layer_backward(const Arguments& arguments, const Forward& given, const Tensor& d_output, const Tensor& d_h_n,
                    const Tensor& d_c_n, const Gradients& grad, cudaStream_t stream) {
  using A = Accumulator<T>;
  const Call<T> call(arguments, stream);
  const LayerSizes& sizes = call.sizes;
  const LayerOptions& options = call.options;
  const int64_t B = sizes.batch, I = sizes.input_size, H = sizes.hidden_size, P = sizes.projection_size;
  const bool wants_weights = grad.d_bias.has_value();
  const int64_t most_rows = call.begin_of(1) * B;  // of a segment

  const Tensor d_gates_ih = arguments.empty({most_rows, 4 * H});
  const Tensor d_gates_hh = call.norm ? arguments.empty({most_rows, 4 * H}) : d_gates_ih;
  const Tensor product = arguments.empty({B, P}), d_cell = arguments.empty_accumulators({B, H});
  MaybeTensor overflow, d_z, row_sums, passed, d_projected, d_unprojected, unprojected;
  if (call.norm && wants_weights) d_z = arguments.empty({most_rows, 4 * H});
  const int64_t sums = wants_weights ? unit_sums(call.norm, options.peephole) : 0;
  if (sums > 0) {
    const int64_t shape[] = {B, sums, H};
    row_sums = reasoned("allocate a tensor", [&] {
      return torch::stable::new_zeros(*arguments.input, {shape, 3}, accumulator_of(arguments.type));
    });
  }
  if (options.zoneout_h > 0 || (options.reverse && call.sequence.lengths))
    passed = arguments.empty_accumulators({B, P});
  if (options.projection) {
    d_projected = arguments.empty({most_rows, P});
    d_unprojected = arguments.empty({B, H});
    unprojected = arguments.empty({most_rows, H});
  }

  std::optional<Replay<T>> replay;
  if (options.recompute > 0 && B > 0) replay.emplace(call, given, stream);
  const StepOptions<A> step_options(options);
  BackwardStep<T> step{};
  step.sizes = sizes;
  step.options = step_options;
  step.sequence = call.sequence;
  step.seed = call.seed;
  step.in = call.in;
  step.d_h_n = pointer<T>(d_h_n);
  step.d_c_n = pointer<T>(d_c_n);
  step.product = pointer<T>(product);
  step.passed = pointer<A>(passed);
  step.d_cell = pointer<A>(d_cell);
  step.unit_sums = pointer<A>(row_sums);
  step.d_unprojected = pointer<T>(d_unprojected);

  WeightGradient d_weight_ih(arguments, grad.d_weight_ih, call.segments),
      d_weight_hh(arguments, grad.d_weight_hh, call.segments), d_weight_hr(arguments, grad.d_weight_hr, call.segments);
  MaybeTensor real_inputs, hidden, partial;
  ColumnSums<T> columns{};
  columns.sequence = call.sequence;
  columns.rows = most_rows;
  columns.columns = 4 * H;
  columns.norms = call.norm;
  const int64_t most_chunks = columns.chunks();  // of a segment
  int64_t chunks = 0;                            // of all
  if (wants_weights) {
    if (call.sequence.lengths) real_inputs = arguments.empty({most_rows, I});
    hidden = arguments.empty({most_rows, P});
    partial = arguments.empty_accumulators({call.segments * most_chunks, columns.sums(), columns.columns});
  }

  for (int64_t segment = call.segments - 1; segment >= 0; --segment) {
    const int64_t begin = call.begin_of(segment), end = call.begin_of(segment + 1);
    const int64_t first = call.first_time(begin, end), rows = (end - begin) * B;
    const Forward& saved = replay ? replay->run(segment) : given;
    step.width = std::min(call.inputs_width, width_of<T>(sizes, {pointer<T>(saved.gates), pointer<T>(saved.recurrent),
                                                                 pointer<A>(saved.cells), pointer<A>(given.cells),
                                                                 pointer<T>(d_output), step.d_h_n, step.d_c_n}));
    step.overflow = call.overflow(backward_register_units<T>(step.width), kBackwardSlots, overflow);
    for (int64_t s = end - 1; s >= begin && B > 0; --s) {
      const int64_t t = call.time_of(s), row = (t - first) * B;
      step.t = t;
      step.gates = pointer<T>(saved.gates) + row * 4 * H;
      step.recurrent = call.norm ? pointer<T>(saved.recurrent) + row * 4 * H : nullptr;
      step.stats = call.norm ? pointer<A>(saved.stats) + row * 6 : nullptr;
      if (s > begin)
        step.cells = pointer<A>(saved.cells) + (call.time_of(s - 1) - first) * B * H;
      else
        step.cells = replay ? pointer<A>(given.cells) + segment * B * H : nullptr;
      step.d_output = pointer<T>(d_output) + t * B * P;
      step.d_gates_ih = pointer<T>(d_gates_ih) + row * 4 * H;
      step.d_gates_hh = pointer<T>(d_gates_hh) + row * 4 * H;
      step.d_z = d_z ? pointer<T>(d_z) + row * 4 * H : nullptr;
      if (options.projection) {
        step.d_projected = pointer<T>(d_projected) + row * P;
        step.unprojected = pointer<T>(unprojected) + row * H;
        check(backward_project_step(step, stream));
        multiply(*d_unprojected, rows_of(*d_projected, row, B, P), *arguments.weight_hr);
      }
      check(backward_step(step, stream));
      multiply(product, rows_of(d_gates_hh, row, B, 4 * H), call.weight_hh);
    }

    // What the steps left is multiplied and summed over all of them at once.
    if (grad.d_input)
      multiply(rows_of(*grad.d_input, first * B, rows, I), rows_of(d_gates_ih, 0, rows, 4 * H), *arguments.weight_ih);
    if (!wants_weights) continue;
    if (rows > 0) {
      Operand<T> operand{sizes,
                         step_options,
                         call.sequence,
                         first,
                         rows,
                         call.seed,
                         call.in.input + first * B * I,
                         call.in.h_0,
                         pointer<T>(saved.hidden ? saved.hidden : saved.output),
                         1,
                         nullptr};
      if (real_inputs) {
        operand.out = pointer<T>(real_inputs);
        check(real_input(operand, stream));
      }
      operand.out = pointer<T>(hidden);
      operand.width = width_of<T>(sizes, {operand.h_0, operand.hidden, operand.out});
      check(previous_hidden(operand, stream));
    }
    const Tensor inputs =
        real_inputs ? rows_of(*real_inputs, 0, rows, I) : rows_of(*arguments.input, first * B, rows, I);
    d_weight_ih.add(transposed(d_gates_ih, rows, 4 * H), inputs);
    d_weight_hh.add(transposed(d_gates_hh, rows, 4 * H), rows_of(*hidden, 0, rows, P));
    if (options.projection) d_weight_hr.add(transposed(*d_projected, rows, P), rows_of(*unprojected, 0, rows, H));

    columns.first = first;
    columns.rows = rows;
    columns.values = pointer<T>(d_z ? *d_z : d_gates_ih);
    columns.width = kLanes<T>;  // memory of torch's own, and rows of 4 H
    columns.partial = pointer<A>(partial) + segment * most_chunks * columns.sums() * columns.columns;
    if (call.norm) {
      columns.gates = pointer<T>(saved.gates);
      columns.recurrent = pointer<T>(saved.recurrent);
      columns.stats = pointer<A>(saved.stats);
      columns.width = width_of<T>({0, 0, 0, 0, 0}, {columns.gates, columns.recurrent});
    }
    if (columns.chunks() > 0) check(column_sums(columns, stream));
    if (segment + 1 == call.segments) chunks = segment * most_chunks + columns.chunks();
  }
  if (B > 0)
    check(finish<T>({sizes, step_options, call.sequence, call.seed, step.d_h_n, step.d_c_n, step.product, step.passed,
                     step.d_cell, pointer<T>(grad.d_h_0), pointer<T>(grad.d_c_0)},
                    stream));
  if (!wants_weights) return;
  d_weight_ih.finish();
  d_weight_hh.finish();
  d_weight_hr.finish();
  if (call.drops_weight && sizes.steps * B > 0)
    call.mask_weight_hh(pointer<T>(grad.d_weight_hh), *grad.d_weight_hh, stream);

  const auto add_chunks = [&](int64_t count, int64_t size, A* partial, std::initializer_list<T*> to) {
    ChunkSums<T> all{count, static_cast<int64_t>(to.size()), size, partial, {}};
    std::copy(to.begin(), to.end(), all.out);
    check(chunk_sums(all, stream));
  };
  if (!call.norm)
    add_chunks(chunks, 4 * H, pointer<A>(partial), {pointer<T>(grad.d_bias)});
  else
    add_chunks(chunks, 4 * H, pointer<A>(partial),
               {pointer<T>(grad.d_bias), pointer<T>(grad.d_weight_ln_ih), pointer<T>(grad.d_weight_ln_hh)});
  if (sums > 0) {
    ColumnSums<A> units{};
    units.sequence = {1, B, false, nullptr, nullptr};
    units.rows = B;
    units.columns = sums * H;
    units.values = pointer<A>(row_sums);
    units.width = units.columns % kLanes<A> == 0 ? kLanes<A> : 1;
    const Tensor unit_partial = arguments.empty_accumulators({units.chunks(), units.sums(), units.columns});
    units.partial = pointer<A>(unit_partial);
    if (units.chunks() > 0) check(column_sums(units, stream));
    T* const norms[] = {pointer<T>(grad.d_weight_ln_c), pointer<T>(grad.d_bias_ln_c)};
    T* const peepholes[] = {pointer<T>(grad.d_weight_ci), pointer<T>(grad.d_weight_cf), pointer<T>(grad.d_weight_co)};
    if (call.norm && options.peephole)
      add_chunks(units.chunks(), H, units.partial, {norms[0], norms[1], peepholes[0], peepholes[1], peepholes[2]});
    else if (call.norm)
      add_chunks(units.chunks(), H, units.partial, {norms[0], norms[1]});
    else
      add_chunks(units.chunks(), H, units.partial, {peepholes[0], peepholes[1], peepholes[2]});
  }
}

#define LSTM_FUSED_INSTANTIATE(T)                                                                                \
  template void layer_forward<T>(const Arguments&, const Forward&, cudaStream_t);                                \
  template void layer_backward<T>(const Arguments&, const Forward&, const Tensor&, const Tensor&, const Tensor&, \
                                  const Gradients&, cudaStream_t);
LSTM_FUSED_INSTANTIATE(float)
LSTM_FUSED_INSTANTIATE(double)
LSTM_FUSED_INSTANTIATE(__half)
LSTM_FUSED_INSTANTIATE(__nv_bfloat16)
#undef LSTM_FUSED_INSTANTIATE

}  // namespace lstm_fused::cuda
