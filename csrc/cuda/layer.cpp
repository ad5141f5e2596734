#include "cuda/layer.h"

#include <algorithm>
#include <array>
#include <initializer_list>

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
    fail("torch could not make a view of a tensor");
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

// out = a b, on torch's current stream.
void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out)};
  if (torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION) != 0)
    fail("torch could not multiply two matrices");
  torch::stable::detail::to<Tensor>(stack[0]);  // takes back the reference to `out`
}

// Whether rows of P and of H units, at these addresses, can be moved in whole vectors.
template <typename T>
bool aligned(const LayerSizes& sizes, std::initializer_list<const void*> addresses) {
  if (sizes.hidden_size % kLanes<T> != 0 || sizes.projection_size % kLanes<T> != 0) return false;
  return std::all_of(addresses.begin(), addresses.end(),
                     [](const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; });
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
  bool inputs_aligned;
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
    inputs_aligned =
        aligned<T>(sizes, {in.h_0, in.c_0, in.weight_hh, in.bias_ih, in.bias_hh, in.weight_ln_ih, in.weight_ln_hh,
                           in.weight_ln_c, in.bias_ln_c, in.weight_ci, in.weight_cf, in.weight_co});
    if (drops_weight && sizes.batch > 0) {
      weight_hh = arguments.empty({4 * sizes.hidden_size, sizes.projection_size});
      mask_weight_hh(in.weight_hh, weight_hh, stream);
    }
  }

  void mask_weight_hh(const T* from, const Tensor& to, cudaStream_t stream) const {
    T* const out = static_cast<T*>(to.mutable_data_ptr());
    check(mask_weight<T>({sizes, options, seed, aligned<T>(sizes, {from, out}), from, out}, stream));
  }

  // Where layer norm keeps rows that are too long for the registers of a block.
  MaybeTensor overflow(int64_t slots) const {
    if (!norm || sizes.hidden_size <= kRegisterUnits<T>) return std::nullopt;
    return arguments.empty_accumulators({sizes.batch, slots, padded_units<T>(sizes.hidden_size)});
  }
};

}  // namespace

template <typename T>
void layer_forward(const Arguments& arguments, const Forward& out, cudaStream_t stream) {
  using A = Accumulator<T>;
  const Call<T> call(arguments, stream);
  const LayerSizes& sizes = call.sizes;
  const LayerOptions& options = call.options;
  const int64_t steps = sizes.steps, B = sizes.batch, I = sizes.input_size, H = sizes.hidden_size,
                P = sizes.projection_size;
  if (B == 0) return;

  // The state: h in h_n, c in c_n where that is of the type it is computed in.
  const bool saves = out.gates.has_value();
  const bool own_cell = accumulator_of(arguments.type) != arguments.type;
  const Tensor cell = own_cell ? arguments.empty_accumulators({B, H}) : *out.c_n;
  const bool own_operand = call.drops_hidden || call.sequence.reset;
  const Tensor operand = own_operand ? arguments.empty({B, P}) : *out.h_n;
  T* const next_operand = own_operand ? pointer<T>(operand) : nullptr;
  check(start<T>({sizes, options, call.sequence, call.seed, call.in.h_0, call.in.c_0, pointer<T>(out.h_n), next_operand,
                  pointer<A>(cell)},
                 stream));

  const int64_t chunk_steps = saves ? std::max<int64_t>(steps, 1)
                                    : std::clamp<int64_t>(chunk_values / (4 * B * H), 1, std::max<int64_t>(steps, 1));
  const Tensor gates = saves ? *out.gates : arguments.empty({std::min(chunk_steps, steps), B, 4 * H});
  const bool keeps_recurrent = saves && call.norm;
  const Tensor recurrent = keeps_recurrent ? *out.recurrent : arguments.empty({B, 4 * H});
  const MaybeTensor overflow = call.overflow(kForwardSlots);
  MaybeTensor unprojected, projected, weight_hr;
  if (options.projection) {
    unprojected = arguments.empty({B, H});
    projected = arguments.empty({B, P});
    weight_hr = transposed(*arguments.weight_hr, P, H);
  }
  const Tensor weight_ih_t = transposed(*arguments.weight_ih, 4 * H, I),
               weight_hh_t = transposed(call.weight_hh, 4 * H, P);

  ForwardStep<T> step{};
  step.sizes = sizes;
  step.options = options;
  step.sequence = call.sequence;
  step.seed = call.seed;
  step.in = call.in;
  step.saves = saves;
  step.h = pointer<T>(out.h_n);
  step.operand = next_operand;
  step.cell = pointer<A>(cell);
  step.unprojected = pointer<T>(unprojected);
  step.projected = pointer<T>(projected);
  step.overflow = pointer<A>(overflow);
  step.aligned = call.inputs_aligned && aligned<T>(sizes, {step.h, step.operand, step.cell, pointer<T>(out.output)});

  for (int64_t s = 0; s < steps; ++s) {
    const int64_t t = options.reverse ? steps - 1 - s : s;
    // The chunk of W_ih x that step t is in: steps [first, last).
    if (s % chunk_steps == 0) {
      const int64_t count = std::min(chunk_steps, steps - s), first = options.reverse ? t - count + 1 : t;
      multiply(rows_of(gates, 0, count * B, 4 * H), rows_of(*arguments.input, first * B, count * B, I), weight_ih_t);
    }
    const int64_t chunk_first = options.reverse ? std::max<int64_t>(steps - (s / chunk_steps + 1) * chunk_steps, 0)
                                                : s / chunk_steps * chunk_steps;
    const int64_t row = t * B, recurrent_row = keeps_recurrent ? row : 0;
    multiply(rows_of(recurrent, recurrent_row, B, 4 * H), operand, weight_hh_t);
    step.t = t;
    step.gates = pointer<T>(gates) + (t - chunk_first) * B * 4 * H;
    step.recurrent = pointer<T>(recurrent) + recurrent_row * 4 * H;
    step.stats = pointer<A>(out.stats) ? pointer<A>(out.stats) + row * 6 : nullptr;
    step.cells = pointer<A>(out.cells) ? pointer<A>(out.cells) + row * H : nullptr;
    step.hidden = pointer<T>(out.hidden) ? pointer<T>(out.hidden) + row * P : nullptr;
    step.output = pointer<T>(out.output) + row * P;
    check(forward_step(step, stream));
    if (options.projection) {
      multiply(*projected, *unprojected, *weight_hr);
      check(project_step(step, stream));
    }
  }
  if (own_cell) {
    Tensor c_n = *out.c_n;
    torch::stable::copy_(c_n, cell);
  }
}

template <typename T>
void layer_backward(const Arguments& arguments, const Forward& saved, const Tensor& d_output, const Tensor& d_h_n,
                    const Tensor& d_c_n, const Gradients& grad, cudaStream_t stream) {
  using A = Accumulator<T>;
  const Call<T> call(arguments, stream);
  const LayerSizes& sizes = call.sizes;
  const LayerOptions& options = call.options;
  const int64_t steps = sizes.steps, B = sizes.batch, I = sizes.input_size, H = sizes.hidden_size,
                P = sizes.projection_size;
  const bool wants_weights = grad.d_bias.has_value();
  const int64_t rows = steps * B;

  const Tensor d_gates_ih = arguments.empty({rows, 4 * H});
  const Tensor d_gates_hh = call.norm ? arguments.empty({rows, 4 * H}) : d_gates_ih;
  MaybeTensor d_z, row_sums, passed, d_projected, d_unprojected, unprojected;
  if (call.norm && wants_weights) d_z = arguments.empty({rows, 4 * H});
  const int64_t sums = wants_weights ? unit_sums(options) : 0;
  if (sums > 0) {
    const int64_t shape[] = {B, sums, H};
    row_sums = torch::stable::new_zeros(*arguments.input, {shape, 3}, accumulator_of(arguments.type));
  }
  if (options.zoneout_h > 0 || (options.reverse && call.sequence.lengths))
    passed = arguments.empty_accumulators({B, P});
  if (options.projection) {
    d_projected = arguments.empty({rows, P});
    d_unprojected = arguments.empty({B, H});
    unprojected = arguments.empty({rows, H});
  }

  if (B > 0) {
    const Tensor product = arguments.empty({B, P}), d_cell = arguments.empty_accumulators({B, H});
    const MaybeTensor overflow = call.overflow(kBackwardSlots);
    BackwardStep<T> step{};
    step.sizes = sizes;
    step.options = options;
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
    step.overflow = pointer<A>(overflow);
    step.aligned = call.inputs_aligned &&
                   aligned<T>(sizes, {pointer<T>(saved.gates), pointer<T>(saved.recurrent), pointer<A>(saved.cells),
                                      pointer<T>(d_output), step.d_h_n, step.d_c_n});
    for (int64_t s = steps - 1; s >= 0; --s) {
      const int64_t t = options.reverse ? steps - 1 - s : s, row = t * B;
      step.t = t;
      step.gates = pointer<T>(saved.gates) + row * 4 * H;
      step.recurrent = call.norm ? pointer<T>(saved.recurrent) + row * 4 * H : nullptr;
      step.stats = call.norm ? pointer<A>(saved.stats) + row * 6 : nullptr;
      step.cells = s > 0 ? pointer<A>(saved.cells) + (options.reverse ? t + 1 : t - 1) * B * H : nullptr;
      step.d_output = pointer<T>(d_output) + row * P;
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
    check(finish<T>({sizes, options, call.sequence, call.seed, step.d_h_n, step.d_c_n, step.product, step.passed,
                     step.d_cell, pointer<T>(grad.d_h_0), pointer<T>(grad.d_c_0)},
                    stream));
  }

  // What the steps left is multiplied and summed over all of them at once.
  if (grad.d_input) multiply(rows_of(*grad.d_input, 0, rows, I), d_gates_ih, *arguments.weight_ih);
  if (!wants_weights) return;
  MaybeTensor real_inputs;
  if (call.sequence.lengths) real_inputs = arguments.empty({rows, I});
  const Tensor hidden = arguments.empty({rows, P});
  if (rows > 0) {
    Operand<T> operand{sizes,
                       options,
                       call.sequence,
                       call.seed,
                       call.in.input,
                       call.in.h_0,
                       pointer<T>(saved.hidden ? saved.hidden : saved.output),
                       false,
                       nullptr};
    if (real_inputs) {
      operand.out = pointer<T>(real_inputs);
      check(real_input(operand, stream));
    }
    operand.out = pointer<T>(hidden);
    operand.aligned = aligned<T>(sizes, {operand.h_0, operand.hidden, operand.out});
    check(previous_hidden(operand, stream));
  }
  const Tensor inputs = real_inputs ? *real_inputs : rows_of(*arguments.input, 0, rows, I);
  multiply(*grad.d_weight_ih, transposed(d_gates_ih, rows, 4 * H), inputs);
  multiply(*grad.d_weight_hh, transposed(d_gates_hh, rows, 4 * H), hidden);
  if (call.drops_weight && rows > 0) call.mask_weight_hh(pointer<T>(grad.d_weight_hh), *grad.d_weight_hh, stream);
  if (options.projection) multiply(*grad.d_weight_hr, transposed(*d_projected, rows, P), *unprojected);

  const auto sum_columns = [&](auto columns, std::initializer_list<T*> to) {
    const int64_t chunks = columns.chunks();
    const Tensor partial =
        arguments.empty_accumulators({std::max<int64_t>(chunks, 1), columns.sums(), columns.columns});
    columns.partial = pointer<A>(partial);
    if (chunks > 0) check(column_sums(columns, stream));
    const int64_t count = static_cast<int64_t>(to.size());
    ChunkSums<T> all{chunks, count, columns.sums() * columns.columns / count, columns.partial, {}};
    std::copy(to.begin(), to.end(), all.out);
    check(chunk_sums(all, stream));
  };
  ColumnSums<T> columns{};
  columns.sequence = call.sequence;
  columns.rows = rows;
  columns.columns = 4 * H;
  columns.values = pointer<T>(d_z ? *d_z : d_gates_ih);
  columns.norms = call.norm;
  columns.aligned = true;  // memory of torch's own, and rows of 4 H
  if (!call.norm) {
    sum_columns(columns, {pointer<T>(grad.d_bias)});
  } else {
    columns.gates = pointer<T>(saved.gates);
    columns.recurrent = pointer<T>(saved.recurrent);
    columns.stats = pointer<A>(saved.stats);
    columns.aligned = aligned<T>({0, 0, 0, 0, 0}, {columns.gates, columns.recurrent});
    sum_columns(columns, {pointer<T>(grad.d_bias), pointer<T>(grad.d_weight_ln_ih), pointer<T>(grad.d_weight_ln_hh)});
  }
  if (sums > 0) {
    ColumnSums<A> units{};
    units.sequence = {1, B, false, nullptr, nullptr};
    units.rows = B;
    units.columns = sums * H;
    units.values = pointer<A>(row_sums);
    units.aligned = units.columns % kLanes<A> == 0;
    T* const norms[] = {pointer<T>(grad.d_weight_ln_c), pointer<T>(grad.d_bias_ln_c)};
    T* const peepholes[] = {pointer<T>(grad.d_weight_ci), pointer<T>(grad.d_weight_cf), pointer<T>(grad.d_weight_co)};
    if (call.norm && options.peephole)
      sum_columns(units, {norms[0], norms[1], peepholes[0], peepholes[1], peepholes[2]});
    else if (call.norm)
      sum_columns(units, {norms[0], norms[1]});
    else
      sum_columns(units, {peepholes[0], peepholes[1], peepholes[2]});
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
