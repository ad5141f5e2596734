// The ops of schema.cpp on the device of a `Backend`: results are allocated here, and computed there. It has
//
//   static ScalarType computed(ScalarType);   the type it computes tensors of this type in
//   static void prepare(Arguments&);          checks or reads what can be on this device alone
//   static void forward(const Arguments&, const Forward& out);
//   static void backward(const Arguments&, const Forward& saved, const Tensor& d_output, const Tensor& d_h_n,
//                        const Tensor& d_c_n, const Gradients& out);
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "op_arguments.h"

namespace lstm_fused {

// Results of a forward pass: [T, B, P], [B, P], [B, H], and what is kept for the backward pass, as LayerSaved; cells
// and stats are of the accumulator's type; with `recompute` hidden too. What is null is not wanted. A single step's
// output is h_n, and it keeps no cells.
struct Forward {
  MaybeTensor output, h_n, c_n;
  MaybeTensor hidden, cells, gates, recurrent, stats;
};

// Null: not wanted, or not a parameter of this layer. Of the weights all are wanted or none is.
struct Gradients {
  MaybeTensor d_input;
#define LSTM_FUSED_MAYBE(name, ...) MaybeTensor name;
  LSTM_FUSED_GRADIENTS(LSTM_FUSED_MAYBE)
#undef LSTM_FUSED_MAYBE
};

// Parameters of the ops and what becomes of them: each list as op_table.h has it.
#define LSTM_FUSED_GIVEN(name, ...) , const Tensor& name
#define LSTM_FUSED_MAYBE(name, ...) , const MaybeTensor& name
#define LSTM_FUSED_RATE(name) , double name
#define LSTM_FUSED_COUNT(name, ...) , int64_t name
#define LSTM_FUSED_FLAG(name, value) , bool name
#define LSTM_FUSED_REAL(name, value) , double name
#define LSTM_FUSED_NAME(name, ...) name,
#define LSTM_FUSED_SET(name, ...) options.name = name;

#define LSTM_FUSED_CELL_TENSORS                                              \
  const Tensor& input LSTM_FUSED_STATE(LSTM_FUSED_GIVEN) LSTM_FUSED_WEIGHTS( \
      LSTM_FUSED_GIVEN, LSTM_FUSED_MAYBE, LSTM_FUSED_MAYBE) LSTM_FUSED_MAYBE(reset) LSTM_FUSED_MAYBE(seed)
#define LSTM_FUSED_LAYER_TENSORS                                                                         \
  const Tensor& input LSTM_FUSED_STATE(LSTM_FUSED_GIVEN)                                                 \
      LSTM_FUSED_WEIGHTS(LSTM_FUSED_GIVEN, LSTM_FUSED_MAYBE, LSTM_FUSED_MAYBE) LSTM_FUSED_MAYBE(lengths) \
          LSTM_FUSED_MAYBE(reset) LSTM_FUSED_MAYBE(seed)
#define LSTM_FUSED_LAYER_PARAMETERS \
  LSTM_FUSED_LAYER_OPTIONS(LSTM_FUSED_RATE, LSTM_FUSED_COUNT, LSTM_FUSED_FLAG, LSTM_FUSED_REAL)
#define LSTM_FUSED_CELL_PARAMETERS \
  , int64_t step LSTM_FUSED_STEP_OPTIONS(LSTM_FUSED_RATE, LSTM_FUSED_COUNT, LSTM_FUSED_FLAG, LSTM_FUSED_REAL)

#define LSTM_FUSED_GIVEN_WEIGHTS {LSTM_FUSED_WEIGHTS(LSTM_FUSED_NAME, LSTM_FUSED_NAME, LSTM_FUSED_NAME)}
#define LSTM_FUSED_LAYER_CALL                                                                          \
  [&] {                                                                                                \
    LayerOptions options;                                                                              \
    LSTM_FUSED_LAYER_OPTIONS(LSTM_FUSED_SET, LSTM_FUSED_SET, LSTM_FUSED_SET, LSTM_FUSED_SET)           \
    return arguments(input, h_0, c_0, LSTM_FUSED_GIVEN_WEIGHTS, lengths, reset, seed, options, false); \
  }()
#define LSTM_FUSED_CELL_CALL                                                                               \
  [&] {                                                                                                    \
    LayerOptions options;                                                                                  \
    LSTM_FUSED_STEP_OPTIONS(LSTM_FUSED_SET, LSTM_FUSED_SET, LSTM_FUSED_SET, LSTM_FUSED_SET)                \
    options.first_step = step;                                                                             \
    return arguments(input, h_0, c_0, LSTM_FUSED_GIVEN_WEIGHTS, std::nullopt, reset, seed, options, true); \
  }()

template <class Backend>
struct Ops {
#define LSTM_FUSED_TENSOR(name, ...) , Tensor
  using GradientTuple = std::tuple<Tensor LSTM_FUSED_GRADIENTS(LSTM_FUSED_TENSOR)>;
#undef LSTM_FUSED_TENSOR

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_layer(
      LSTM_FUSED_LAYER_TENSORS LSTM_FUSED_LAYER_PARAMETERS) {
    const Arguments call = LSTM_FUSED_LAYER_CALL;
    const Forward out = forward(call, true);
    return {call.given(out.output), call.given(out.h_n),  call.given(out.c_n),      call.kept(out.hidden),
            call.kept(out.cells),   call.kept(out.gates), call.kept(out.recurrent), call.kept(out.stats)};
  }

  static std::tuple<Tensor, Tensor, Tensor> lstm_layer_inference(LSTM_FUSED_LAYER_TENSORS LSTM_FUSED_LAYER_PARAMETERS) {
    const Arguments call = LSTM_FUSED_LAYER_CALL;
    const Forward out = forward(call, false);
    return {call.given(out.output), call.given(out.h_n), call.given(out.c_n)};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_cell(
      LSTM_FUSED_CELL_TENSORS LSTM_FUSED_CELL_PARAMETERS) {
    const Arguments call = LSTM_FUSED_CELL_CALL;
    const Forward out = forward(call, true);
    return {call.given(out.h_n), call.given(out.c_n), call.kept(out.gates), call.kept(out.recurrent),
            call.kept(out.stats)};
  }

  static std::tuple<Tensor, Tensor> lstm_cell_inference(LSTM_FUSED_CELL_TENSORS LSTM_FUSED_CELL_PARAMETERS) {
    const Arguments call = LSTM_FUSED_CELL_CALL;
    const Forward out = forward(call, false);
    return {call.given(out.h_n), call.given(out.c_n)};
  }

  static std::tuple<Tensor, Tensor> lstm_cell_plain(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                                                    const Tensor& weight_ih, const Tensor& weight_hh,
                                                    const MaybeTensor& bias_ih, const MaybeTensor& bias_hh) {
    const MaybeTensor none;
    const Weights weights = {weight_ih, weight_hh, bias_ih, bias_hh, none, none, none,
                             none,      none,      none,    none,    none, none, none};
    const Arguments call = arguments(input, h_0, c_0, weights, none, none, none, LayerOptions{}, true);
    const Forward out = forward(call, false);
    return {call.given(out.h_n), call.given(out.c_n)};
  }

  static GradientTuple lstm_layer_backward(const Tensor& d_output, const Tensor& d_h_n, const Tensor& d_c_n,
                                           LSTM_FUSED_LAYER_TENSORS, const Tensor& output, const Tensor& hidden,
                                           const Tensor& cells, const Tensor& gates, const Tensor& recurrent,
                                           const Tensor& stats LSTM_FUSED_LAYER_PARAMETERS, bool want_input,
                                           bool want_weights) {
    const Arguments call = LSTM_FUSED_LAYER_CALL;
    const auto [T, B, I, H, P] = call.sizes;
    const ScalarType accumulator = accumulator_of(call.type);
    Forward saved;
    if (call.saves_states()) {
      const int64_t states = segments(call.sizes, call.options) + 1;
      saved.hidden = call.checked("hidden", hidden, {states, B, P}, kOfForward, accumulator);
      saved.cells = call.checked("cells", cells, {states, B, H}, kOfForward, accumulator);
    } else {
      saved = saved_gates(call, gates, recurrent, stats);
      if (call.saves_hidden())
        saved.hidden = call.checked("hidden", hidden, {T, B, P}, kOfForward, call.computed);
      else
        saved.output = call.checked("output", output, {T, B, P}, kOfForward);
      saved.cells = call.checked("cells", cells, {T, B, H}, kOfForward, accumulator);
    }
    return backward(call, saved, call.checked("d_output", d_output, {T, B, P}, "of output"),
                    call.checked("d_h_n", d_h_n, {B, P}, "of h_0"), call.checked("d_c_n", d_c_n, {B, H}, "[B, H]"),
                    want_input, want_weights);
  }

  static GradientTuple lstm_cell_backward(const Tensor& d_h, const Tensor& d_c, LSTM_FUSED_CELL_TENSORS,
                                          const Tensor& gates, const Tensor& recurrent,
                                          const Tensor& stats LSTM_FUSED_CELL_PARAMETERS, bool want_input,
                                          bool want_weights) {
    const Arguments call = LSTM_FUSED_CELL_CALL;
    const int64_t B = call.sizes.batch, H = call.sizes.hidden_size, P = call.sizes.projection_size;
    // h is the only output: its gradient comes in as that of the final state.
    const int64_t shape[] = {1, B, P};
    return backward(call, saved_gates(call, gates, recurrent, stats), torch::stable::new_zeros(*call.input, {shape, 3}),
                    call.checked("d_h", d_h, {B, P}, "of h_0"), call.checked("d_c", d_c, {B, H}, "[B, H]"), want_input,
                    want_weights);
  }

  // Gives `library` an implementation of every op.
  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("lstm_layer", TORCH_BOX(&Ops::lstm_layer));
    library.impl("lstm_layer_inference", TORCH_BOX(&Ops::lstm_layer_inference));
    library.impl("lstm_layer_backward", TORCH_BOX(&Ops::lstm_layer_backward));
    library.impl("lstm_cell", TORCH_BOX(&Ops::lstm_cell));
    library.impl("lstm_cell_inference", TORCH_BOX(&Ops::lstm_cell_inference));
    library.impl("lstm_cell_plain", TORCH_BOX(&Ops::lstm_cell_plain));
    library.impl("lstm_cell_backward", TORCH_BOX(&Ops::lstm_cell_backward));
  }

 private:
  static constexpr const char* kOfForward = "of the forward pass";

  static Arguments arguments(const Tensor& input, const Tensor& h_0, const Tensor& c_0, const Weights& weights,
                             const MaybeTensor& lengths, const MaybeTensor& reset, const MaybeTensor& seed,
                             const LayerOptions& options, bool is_cell) {
    const ScalarType type = input.scalar_type();
    if (type != ScalarType::Float && type != ScalarType::Double && type != ScalarType::Half &&
        type != ScalarType::BFloat16)
      fail("input must be float32, float64, bfloat16 or float16, got ", to_text(type));
    Arguments call(input, h_0, c_0, weights, lengths, reset, seed, options, Backend::computed(type), is_cell);
    Backend::prepare(call);
    return call;
  }

  static Forward forward(const Arguments& call, bool saves) {
    const auto [T, B, I, H, P] = call.sizes;
    const bool norm = has_layer_norm(call.options);
    Forward out;
    out.h_n = call.empty({B, P});
    out.c_n = call.empty({B, H});
    out.output = call.is_cell ? *out.h_n : call.empty({T, B, P});
    if (saves && call.is_cell) {
      out.gates = call.empty({B, 4 * H});
      if (norm) out.recurrent = call.empty({B, 4 * H});
      if (norm) out.stats = call.empty_accumulators({B, 6});
    } else if (saves && call.saves_states()) {
      const int64_t states = segments(call.sizes, call.options) + 1;
      out.hidden = call.empty_accumulators({states, B, P});
      out.cells = call.empty_accumulators({states, B, H});
    } else if (saves) {
      if (call.saves_hidden()) out.hidden = call.empty({T, B, P});
      out.cells = call.empty_accumulators({T, B, H});
      out.gates = call.empty({T, B, 4 * H});
      if (norm) out.recurrent = call.empty({T, B, 4 * H});
      if (norm) out.stats = call.empty_accumulators({T, B, 6});
    }
    Backend::forward(call, out);
    return out;
  }

  static Forward saved_gates(const Arguments& call, const Tensor& gates, const Tensor& recurrent, const Tensor& stats) {
    const auto [T, B, I, H, P] = call.sizes;
    const auto saved = [&call, T = T, B = B](const char* name, const Tensor& tensor, int64_t width, ScalarType type) {
      return call.is_cell ? call.checked(name, tensor, {B, width}, kOfForward, type)
                          : call.checked(name, tensor, {T, B, width}, kOfForward, type);
    };
    Forward out;
    out.gates = saved("gates", gates, 4 * H, call.computed);
    if (has_layer_norm(call.options)) {
      out.recurrent = saved("recurrent", recurrent, 4 * H, call.computed);
      out.stats = saved("stats", stats, 6, accumulator_of(call.type));
    }
    return out;
  }

  static GradientTuple backward(const Arguments& call, const Forward& saved, const Tensor& d_output,
                                const Tensor& d_h_n, const Tensor& d_c_n, bool want_input, bool want_weights) {
    const auto [T, B, I, H, P] = call.sizes;
    Gradients out;
    const bool norm = has_layer_norm(call.options), projection = call.options.projection;
    const bool peephole = call.options.peephole;
    if (want_input) out.d_input = call.is_cell ? call.empty({B, I}) : call.empty({T, B, I});
#define LSTM_FUSED_ALLOCATE(name, condition, ...) \
  if (condition) out.name = call.empty({__VA_ARGS__});
    LSTM_FUSED_GRADIENTS(LSTM_FUSED_ALLOCATE)
#undef LSTM_FUSED_ALLOCATE
    Backend::backward(call, saved, d_output, d_h_n, d_c_n, out);
#define LSTM_FUSED_RESULT(name, ...) , call.given(out.name)
    return {call.given(out.d_input) LSTM_FUSED_GRADIENTS(LSTM_FUSED_RESULT)};
#undef LSTM_FUSED_RESULT
  }
};

#undef LSTM_FUSED_GIVEN
#undef LSTM_FUSED_MAYBE
#undef LSTM_FUSED_RATE
#undef LSTM_FUSED_COUNT
#undef LSTM_FUSED_FLAG
#undef LSTM_FUSED_REAL
#undef LSTM_FUSED_NAME
#undef LSTM_FUSED_SET
#undef LSTM_FUSED_CELL_TENSORS
#undef LSTM_FUSED_LAYER_TENSORS
#undef LSTM_FUSED_LAYER_PARAMETERS
#undef LSTM_FUSED_CELL_PARAMETERS
#undef LSTM_FUSED_GIVEN_WEIGHTS
#undef LSTM_FUSED_LAYER_CALL
#undef LSTM_FUSED_CELL_CALL

}  // namespace lstm_fused
