// The CPU implementations of the ops: tensors are checked and taken apart here, and nowhere below. Half precision
// (bfloat16, float16) is how tensors are kept: a call computes in float32 and rounds what it gives.
#include <Python.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <exception>
#include <mutex>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/layer.h"

namespace {

using lstm_fused::has_layer_norm;
using lstm_fused::LayerGradients;
using lstm_fused::LayerInputs;
using lstm_fused::LayerNorm;
using lstm_fused::LayerOptions;
using lstm_fused::LayerOutputs;
using lstm_fused::LayerSaved;
using lstm_fused::LayerSizes;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Shape = std::vector<int64_t>;

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t k = 0; k < shape.size(); ++k) text += (k ? ", " : "") + std::to_string(shape[k]);
  return text + "]";
}

Shape shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return Shape(sizes.begin(), sizes.end());
}

std::string to_string(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return torch::headeronly::toString(type);
  }
}

// One sentence for the caller. STD_TORCH_CHECK would put this file's path in front of it.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw std::runtime_error(sentence.str());
}

// Where a part costs something to make (a shape's text), `if (...) fail(...)`: a step of one sequence takes
// microseconds.
template <typename... Parts>
void check(bool ok, const Parts&... parts) {
  if (!ok) fail(parts...);
}

using Sizes = std::initializer_list<int64_t>;

bool is_half(ScalarType type) { return type == ScalarType::Half || type == ScalarType::BFloat16; }

// A contiguous tensor of the wanted shape and type, half precision as float32, or one sentence.
Tensor checked(const char* name, const Tensor& tensor, Sizes shape, const char* letters, ScalarType type) {
  check(tensor.is_cpu(), name, " must be on the CPU like the input, got another device");
  if (tensor.scalar_type() != type) fail(name, " must be ", to_string(type), ", got ", to_string(tensor.scalar_type()));
  const auto sizes = tensor.sizes();
  if (!std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()))
    fail(name, " must have shape ", letters, " = ", to_string(Shape(shape)), ", got ", to_string(shape_of(tensor)));
  const Tensor contiguous = tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
  return is_half(type) ? torch::stable::to(contiguous, ScalarType::Float) : contiguous;
}

MaybeTensor checked(const char* name, const MaybeTensor& tensor, Sizes shape, const char* letters, ScalarType type) {
  if (!tensor) return std::nullopt;
  return checked(name, *tensor, shape, letters, type);
}

struct Weights {
  const Tensor &ih, &hh;
  const MaybeTensor &bias_ih, &bias_hh, &ln_ih, &ln_hh, &ln_c, &bias_ln_c, &bias_ln_ih, &bias_ln_hh, &hr, &ci, &cf, &co;
};

// The arguments of a call, checked, contiguous, and alive as long as this is.
struct Call {
  LayerSizes sizes{};
  LayerOptions options;
  ScalarType type = ScalarType::Float;  // of the tensors that came and of those that go
  // All optional, those always there too: a Tensor that is not given yet would be an allocation.
  MaybeTensor input, h_0, c_0, weight_ih, weight_hh;
  MaybeTensor bias_ih, bias_hh, ln_ih, ln_hh, ln_c, bias_ln_c, hr, ci, cf, co, lengths, reset;

  Call(const Tensor& given_input, const Tensor& given_h_0, const Tensor& given_c_0, const Weights& weights,
       const MaybeTensor& given_lengths, const MaybeTensor& given_reset, const MaybeTensor& seed,
       const LayerOptions& given_options, bool is_cell)
      : options(given_options), type(given_input.scalar_type()) {
    if (type != ScalarType::Float && type != ScalarType::Double && !is_half(type))
      fail("input must be float32, float64, bfloat16 or float16, got ", to_string(type));
    if (given_input.dim() != (is_cell ? 2 : 3))
      fail("input must have shape ", is_cell ? "[B, I]" : "[T, B, I]", ", got ", to_string(shape_of(given_input)));
    options.projection = weights.hr.has_value();
    // What the shape of h and weight_hh is called in an error: there is no P without a projection.
    const char* const h_letters = options.projection ? "[B, P]" : "[B, H]";
    const char* const hh_letters = options.projection ? "[4H, P]" : "[4H, H]";
    if (weights.hh.dim() != 2)
      fail("weight_hh must have shape ", hh_letters, ", got ", to_string(shape_of(weights.hh)));
    if (options.projection && weights.hr->dim() != 2)
      fail("weight_hr must have shape [P, H], got ", to_string(shape_of(*weights.hr)));
    sizes.steps = is_cell ? 1 : given_input.size(0);
    sizes.batch = given_input.size(is_cell ? 0 : 1);
    sizes.input_size = given_input.size(is_cell ? 1 : 2);
    sizes.projection_size = weights.hh.size(1);
    sizes.hidden_size = options.projection ? weights.hr->size(1) : sizes.projection_size;
    const auto [T, B, I, H, P] = sizes;
    check(H > 0 && I > 0 && P > 0, "weight_ih and weight_hh must have at least one input and one hidden unit, got ", I,
          " and ", std::min(H, P));

    input = is_cell ? checked("input", given_input, {B, I}, "[B, I]", type)
                    : checked("input", given_input, {T, B, I}, "[T, B, I]", type);
    h_0 = checked("h_0", given_h_0, {B, P}, h_letters, type);
    c_0 = checked("c_0", given_c_0, {B, H}, "[B, H]", type);
    weight_ih = checked("weight_ih", weights.ih, {4 * H, I}, "[4H, I]", type);
    weight_hh = checked("weight_hh", weights.hh, {4 * H, P}, hh_letters, type);
    bias_ih = checked("bias_ih", weights.bias_ih, {4 * H}, "[4H]", type);
    bias_hh = checked("bias_hh", weights.bias_hh, {4 * H}, "[4H]", type);
    check(bias_ih.has_value() == bias_hh.has_value(), "bias_ih and bias_hh must be given together");
    check_layer_norm(weights);
    hr = checked("weight_hr", weights.hr, {P, H}, "[P, H]", type);
    ci = checked("weight_ci", weights.ci, {H}, "[H]", type);
    cf = checked("weight_cf", weights.cf, {H}, "[H]", type);
    co = checked("weight_co", weights.co, {H}, "[H]", type);
    options.peephole = ci.has_value();
    check(cf.has_value() == options.peephole && co.has_value() == options.peephole,
          "weight_ci, weight_cf and weight_co must be given together");

    lengths = checked("lengths", given_lengths, {B}, "[B]", ScalarType::Long);
    for (int64_t b = 0; lengths && b < B; ++b) {
      const int64_t length = lengths->const_data_ptr<int64_t>()[b];
      check(length >= 0 && length <= T, "lengths must be in 0..T = ", T, ", got ", length, " at index ", b);
    }
    reset = is_cell ? checked("reset", given_reset, {B}, "[B]", ScalarType::Bool)
                    : checked("reset", given_reset, {T, B}, "[T, B]", ScalarType::Bool);
    check_options(seed);
    if (seed)
      options.seed =
          static_cast<uint64_t>(*checked("seed", *seed, {}, "[]", ScalarType::Long).const_data_ptr<int64_t>());
  }

  // The type of the statistics and of the cell state, and of all arithmetic.
  ScalarType accumulator() const { return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

  // A result in the type of the call.
  Tensor given(const MaybeTensor& tensor) const { return is_half(type) ? torch::stable::to(*tensor, type) : *tensor; }

  bool saves_hidden() const { return options.training && options.dropout > 0; }

  template <typename T>
  LayerInputs<T> inputs() const {
    const auto pointer = [](const MaybeTensor& tensor) { return tensor ? tensor->const_data_ptr<T>() : nullptr; };
    return {pointer(input),
            pointer(h_0),
            pointer(c_0),
            pointer(weight_ih),
            pointer(weight_hh),
            pointer(bias_ih),
            pointer(bias_hh),
            pointer(ln_ih),
            pointer(ln_hh),
            pointer(ln_c),
            pointer(bias_ln_c),
            pointer(hr),
            pointer(ci),
            pointer(cf),
            pointer(co),
            lengths ? lengths->const_data_ptr<int64_t>() : nullptr,
            reset ? reset->const_data_ptr<bool>() : nullptr};
  }

  // As torch::stable::new_empty, which looks the op up by its name in every call.
  Tensor empty(Sizes shape) const {
    AtenTensorHandle tensor = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_aten_new_empty(input->get(), shape.begin(),
                                                            static_cast<int64_t>(shape.size()), nullptr, nullptr,
                                                            nullptr, 0, nullptr, &tensor));
    return Tensor(tensor);
  }
  Tensor empty(bool wanted, Sizes shape) const { return wanted ? empty(shape) : empty({0}); }

 private:
  // The tensors of layer norm, and its kind. The biases of "carry" take the place of the others.
  void check_layer_norm(const Weights& weights) {
    const int64_t H = sizes.hidden_size;
    ln_ih = checked("weight_ln_ih", weights.ln_ih, {4 * H}, "[4H]", type);
    ln_hh = checked("weight_ln_hh", weights.ln_hh, {4 * H}, "[4H]", type);
    ln_c = checked("weight_ln_c", weights.ln_c, {H}, "[H]", type);
    bias_ln_c = checked("bias_ln_c", weights.bias_ln_c, {H}, "[H]", type);
    const bool norm = ln_ih.has_value();
    check(ln_hh.has_value() == norm && ln_c.has_value() == norm && bias_ln_c.has_value() == norm,
          "weight_ln_ih, weight_ln_hh, weight_ln_c and bias_ln_c must be given together");
    options.layer_norm = norm ? LayerNorm::ba2016 : LayerNorm::none;
    check(options.eps > 0 || !norm, "eps must be positive, got ", options.eps);
    check(weights.bias_ln_ih.has_value() == weights.bias_ln_hh.has_value(),
          "bias_ln_ih and bias_ln_hh must be given together");
    if (!weights.bias_ln_ih) return;
    check(norm, "weight_ln_ih, weight_ln_hh, weight_ln_c and bias_ln_c must be given with bias_ln_ih and bias_ln_hh");
    check(!bias_ih, "bias_ih and bias_hh must be None with bias_ln_ih and bias_ln_hh, which take their place");
    options.layer_norm = LayerNorm::carry;
    bias_ih = checked("bias_ln_ih", weights.bias_ln_ih, {4 * H}, "[4H]", type);
    bias_hh = checked("bias_ln_hh", weights.bias_ln_hh, {4 * H}, "[4H]", type);
  }

  void check_options(const MaybeTensor& seed) const {
    const int64_t rows = std::max({sizes.steps, sizes.batch, 4 * sizes.hidden_size});  // of masks
    double highest = 0;
    const auto check_rate = [&](const char* name, double rate) {
      check(rate >= 0 && rate < 1, name, " must be in [0, 1), got ", rate);
      highest = std::max(highest, rate);
    };
    check_rate("dropout", options.dropout);
    check_rate("recurrent_dropout", options.recurrent_dropout);
    check_rate("candidate_dropout", options.candidate_dropout);
    check_rate("weight_dropout", options.weight_dropout);
    check_rate("zoneout_h", options.zoneout_h);
    check_rate("zoneout_c", options.zoneout_c);
    check(options.zoneout_h == 0 || !options.projection, "zoneout_h must be 0 with a projection (weight_hr), got ",
          options.zoneout_h);
    check(options.open_gates >= 0 && options.open_gates < 8, "open_gates must be a sum of 1 (i), 2 (f) and 4 (o), got ",
          options.open_gates);
    check(options.stream >= 0 && options.stream < (int64_t{1} << 29), "stream must be in [0, 2^29), got ",
          options.stream);
    check(options.first_step >= 0, "step must not be negative, got ", options.first_step);
    if (!options.training || highest == 0) return;
    check(seed.has_value(), "seed must be given when a rate is above 0 in training, got None");
    check(rows < (int64_t{1} << 32) && options.first_step < (int64_t{1} << 32) - rows,
          "T, B, 4H and step must be below 2^32 when masks are drawn");
  }
};

// torch's thread pool. An exception of a task is thrown again in the calling thread.
lstm_fused::cpu::Executor executor() {
  lstm_fused::cpu::Executor executor;
  executor.threads = static_cast<int64_t>(torch::stable::get_num_threads());
  executor.run = [](int64_t tasks, const std::function<void(int64_t)>& f) {
    if (tasks == 1) return f(0);
    std::exception_ptr error;
    std::mutex mutex;
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      try {
        for (int64_t task = begin; task < end; ++task) f(task);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        error = std::current_exception();
      }
    });
    if (error) std::rethrow_exception(error);
  };
  return executor;
}

template <typename T>
T* pointer(const Tensor& tensor) {
  return tensor.numel() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

template <typename T>
T* pointer(const MaybeTensor& tensor) {
  return tensor ? pointer<T>(*tensor) : nullptr;
}

// f(float{}) or f(double{}).
template <class F>
void with_type(ScalarType type, F f) {
  if (type == ScalarType::Double)
    f(double{});
  else
    f(float{});
}

// What a forward pass gives. Empty without the backward pass in view: all but the results.
struct Forward {
  MaybeTensor output, h_n, c_n, hidden, cells, gates, recurrent, stats;
};

Forward run_forward(const Call& call, bool saves, bool is_cell) {
  const auto [T, B, I, H, P] = call.sizes;
  const bool norm = has_layer_norm(call.options);
  Forward out;
  out.h_n = call.empty({B, P});
  out.c_n = call.empty({B, H});
  // A single step keeps nothing but its gates, and its output is h_n.
  out.output = is_cell ? *out.h_n : call.empty({T, B, P});
  if (saves) {
    const auto saved = [&, T = T, B = B](bool wanted, int64_t width) {
      return is_cell ? call.empty(wanted, {B, width}) : call.empty(wanted, {T, B, width});
    };
    out.hidden = saved(!is_cell && call.saves_hidden(), P);
    out.cells = is_cell ? *out.c_n : saved(true, H);
    out.gates = saved(true, 4 * H);
    out.recurrent = saved(norm, 4 * H);
    out.stats = saved(norm, 6);
  } else if (is_cell) {
    out.cells = out.c_n;
  }
  with_type(call.type, [&](auto zero) {
    using S = decltype(zero);
    const LayerSaved<S> kept = {pointer<S>(out.hidden), pointer<S>(out.cells), pointer<S>(out.gates),
                                pointer<S>(out.recurrent), pointer<S>(out.stats)};
    lstm_fused::cpu::layer_forward<S>(call.sizes, call.options, call.inputs<S>(),
                                      {pointer<S>(out.output), pointer<S>(out.h_n), pointer<S>(out.c_n), kept},
                                      executor());
  });
  return out;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                             Tensor, Tensor, Tensor>;

Gradients run_backward(const Call& call, const Forward& saved, const Tensor& d_output, const Tensor& d_h_n,
                       const Tensor& d_c_n, bool want_input, bool want_weights) {
  const auto [T, B, I, H, P] = call.sizes;
  const bool norm = has_layer_norm(call.options);
  const auto weight = [&](bool given, Sizes shape) { return call.empty(want_weights && given, shape); };
  const Tensor d_input = call.input->dim() == 2 ? call.empty(want_input, {B, I}) : call.empty(want_input, {T, B, I});
  const Tensor d_h_0 = call.empty({B, P}), d_c_0 = call.empty({B, H});
  const Tensor d_weight_ih = weight(true, {4 * H, I}), d_weight_hh = weight(true, {4 * H, P});
  const Tensor d_bias = weight(true, {4 * H});
  const Tensor d_ln_ih = weight(norm, {4 * H}), d_ln_hh = weight(norm, {4 * H});
  const Tensor d_ln_c = weight(norm, {H}), d_bias_ln_c = weight(norm, {H});
  const Tensor d_hr = weight(call.options.projection, {P, H});
  const bool peephole = call.options.peephole;
  const Tensor d_ci = weight(peephole, {H}), d_cf = weight(peephole, {H}), d_co = weight(peephole, {H});
  with_type(call.type, [&](auto zero) {
    using S = decltype(zero);
    const LayerSaved<S> kept = {pointer<S>(saved.hidden), pointer<S>(saved.cells), pointer<S>(saved.gates),
                                pointer<S>(saved.recurrent), pointer<S>(saved.stats)};
    const LayerGradients<S> gradients = {d_output.const_data_ptr<S>(),
                                         d_h_n.const_data_ptr<S>(),
                                         d_c_n.const_data_ptr<S>(),
                                         pointer<S>(d_input),
                                         pointer<S>(d_h_0),
                                         pointer<S>(d_c_0),
                                         pointer<S>(d_weight_ih),
                                         pointer<S>(d_weight_hh),
                                         pointer<S>(d_bias),
                                         pointer<S>(d_ln_ih),
                                         pointer<S>(d_ln_hh),
                                         pointer<S>(d_ln_c),
                                         pointer<S>(d_bias_ln_c),
                                         pointer<S>(d_hr),
                                         pointer<S>(d_ci),
                                         pointer<S>(d_cf),
                                         pointer<S>(d_co)};
    lstm_fused::cpu::layer_backward<S>(call.sizes, call.options, call.inputs<S>(),
                                       {pointer<S>(saved.output), nullptr, nullptr, kept}, gradients, executor());
  });
  const auto given = [&](const Tensor& tensor) { return call.given(tensor); };
  return {given(d_input), given(d_h_0),   given(d_c_0),   given(d_weight_ih), given(d_weight_hh),
          given(d_bias),  given(d_ln_ih), given(d_ln_hh), given(d_ln_c),      given(d_bias_ln_c),
          given(d_hr),    given(d_ci),    given(d_cf),    given(d_co)};
}

LayerOptions step_options(double recurrent_dropout, double candidate_dropout, double weight_dropout, double zoneout_h,
                          double zoneout_c, int64_t open_gates, bool training, double eps, int64_t stream) {
  LayerOptions options;
  options.training = training;
  options.recurrent_dropout = recurrent_dropout;
  options.candidate_dropout = candidate_dropout;
  options.weight_dropout = weight_dropout;
  options.zoneout_h = zoneout_h;
  options.zoneout_c = zoneout_c;
  options.open_gates = open_gates;
  options.eps = eps;
  options.stream = stream;
  return options;
}

LayerOptions layer_options(bool reverse, double dropout, bool variational, LayerOptions options) {
  options.reverse = reverse;
  options.dropout = dropout;
  options.variational = variational;
  return options;
}

LayerOptions cell_options(int64_t step, LayerOptions options) {
  options.first_step = step;
  return options;
}

// The parameters of the ops, in the order of schema.cpp.
#define LSTM_FUSED_WEIGHTS                                                                                  \
  const Tensor &weight_ih, const Tensor &weight_hh, const MaybeTensor &bias_ih, const MaybeTensor &bias_hh, \
      const MaybeTensor &weight_ln_ih, const MaybeTensor &weight_ln_hh, const MaybeTensor &weight_ln_c,     \
      const MaybeTensor &bias_ln_c, const MaybeTensor &bias_ln_ih, const MaybeTensor &bias_ln_hh,           \
      const MaybeTensor &weight_hr, const MaybeTensor &weight_ci, const MaybeTensor &weight_cf,             \
      const MaybeTensor &weight_co
#define LSTM_FUSED_LAYER_INPUTS                                                                              \
  const Tensor &input, const Tensor &h_0, const Tensor &c_0, LSTM_FUSED_WEIGHTS, const MaybeTensor &lengths, \
      const MaybeTensor &reset, const MaybeTensor &seed
#define LSTM_FUSED_CELL_INPUTS                                                                             \
  const Tensor &input, const Tensor &h_0, const Tensor &c_0, LSTM_FUSED_WEIGHTS, const MaybeTensor &reset, \
      const MaybeTensor &seed
#define LSTM_FUSED_STEP_OPTIONS                                                                                  \
  double recurrent_dropout, double candidate_dropout, double weight_dropout, double zoneout_h, double zoneout_c, \
      int64_t open_gates, bool training, double eps, int64_t stream
#define LSTM_FUSED_LAYER_OPTIONS bool reverse, double dropout, bool variational, LSTM_FUSED_STEP_OPTIONS
#define LSTM_FUSED_CELL_OPTIONS int64_t step, LSTM_FUSED_STEP_OPTIONS
#define LSTM_FUSED_GIVEN_WEIGHTS                                                          \
  {weight_ih, weight_hh,  bias_ih,    bias_hh,   weight_ln_ih, weight_ln_hh, weight_ln_c, \
   bias_ln_c, bias_ln_ih, bias_ln_hh, weight_hr, weight_ci,    weight_cf,    weight_co}
#define LSTM_FUSED_GIVEN_OPTIONS                                                                                      \
  step_options(recurrent_dropout, candidate_dropout, weight_dropout, zoneout_h, zoneout_c, open_gates, training, eps, \
               stream)
#define LSTM_FUSED_LAYER_CALL                                           \
  Call(input, h_0, c_0, LSTM_FUSED_GIVEN_WEIGHTS, lengths, reset, seed, \
       layer_options(reverse, dropout, variational, LSTM_FUSED_GIVEN_OPTIONS), false)
#define LSTM_FUSED_CELL_CALL                                                 \
  Call(input, h_0, c_0, LSTM_FUSED_GIVEN_WEIGHTS, std::nullopt, reset, seed, \
       cell_options(step, LSTM_FUSED_GIVEN_OPTIONS), true)

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_layer(LSTM_FUSED_LAYER_INPUTS,
                                                                                      LSTM_FUSED_LAYER_OPTIONS) {
  const Call call = LSTM_FUSED_LAYER_CALL;
  const Forward out = run_forward(call, true, false);
  return {call.given(out.output), call.given(out.h_n),       call.given(out.c_n), call.given(out.hidden), *out.cells,
          call.given(out.gates),  call.given(out.recurrent), *out.stats};
}

std::tuple<Tensor, Tensor, Tensor> lstm_layer_inference(LSTM_FUSED_LAYER_INPUTS, LSTM_FUSED_LAYER_OPTIONS) {
  const Call call = LSTM_FUSED_LAYER_CALL;
  const Forward out = run_forward(call, false, false);
  return {call.given(out.output), call.given(out.h_n), call.given(out.c_n)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_cell(LSTM_FUSED_CELL_INPUTS, LSTM_FUSED_CELL_OPTIONS) {
  const Call call = LSTM_FUSED_CELL_CALL;
  const Forward out = run_forward(call, true, true);
  return {call.given(out.h_n), call.given(out.c_n), call.given(out.gates), call.given(out.recurrent), *out.stats};
}

std::tuple<Tensor, Tensor> lstm_cell_inference(LSTM_FUSED_CELL_INPUTS, LSTM_FUSED_CELL_OPTIONS) {
  const Call call = LSTM_FUSED_CELL_CALL;
  const Forward out = run_forward(call, false, true);
  return {call.given(out.h_n), call.given(out.c_n)};
}

std::tuple<Tensor, Tensor> lstm_cell_plain(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                                           const Tensor& weight_ih, const Tensor& weight_hh, const MaybeTensor& bias_ih,
                                           const MaybeTensor& bias_hh) {
  const MaybeTensor none;
  const Call call(input, h_0, c_0,
                  {weight_ih, weight_hh, bias_ih, bias_hh, none, none, none, none, none, none, none, none, none, none},
                  none, none, none, LayerOptions{}, true);
  const Forward out = run_forward(call, false, true);
  return {call.given(out.h_n), call.given(out.c_n)};
}

Gradients lstm_layer_backward(const Tensor& d_output, const Tensor& d_h_n, const Tensor& d_c_n, LSTM_FUSED_LAYER_INPUTS,
                              const Tensor& output, const Tensor& hidden, const Tensor& cells, const Tensor& gates,
                              const Tensor& recurrent, const Tensor& stats, LSTM_FUSED_LAYER_OPTIONS, bool want_input,
                              bool want_weights) {
  const Call call = LSTM_FUSED_LAYER_CALL;
  const auto [T, B, I, H, P] = call.sizes;
  const bool norm = has_layer_norm(call.options);
  const auto saved = [](const char* name, const Tensor& tensor, bool wanted, Sizes shape,
                        ScalarType type) -> MaybeTensor {
    if (!wanted) return std::nullopt;
    return checked(name, tensor, shape, "of the forward pass", type);
  };
  const Forward kept = {saved("output", output, !call.saves_hidden(), {T, B, P}, call.type),
                        std::nullopt,
                        std::nullopt,
                        saved("hidden", hidden, call.saves_hidden(), {T, B, P}, call.type),
                        saved("cells", cells, true, {T, B, H}, call.accumulator()),
                        saved("gates", gates, true, {T, B, 4 * H}, call.type),
                        saved("recurrent", recurrent, norm, {T, B, 4 * H}, call.type),
                        saved("stats", stats, norm, {T, B, 6}, call.accumulator())};
  return run_backward(call, kept, checked("d_output", d_output, {T, B, P}, "of output", call.type),
                      checked("d_h_n", d_h_n, {B, P}, "of h_0", call.type),
                      checked("d_c_n", d_c_n, {B, H}, "[B, H]", call.type), want_input, want_weights);
}

Gradients lstm_cell_backward(const Tensor& d_h, const Tensor& d_c, LSTM_FUSED_CELL_INPUTS, const Tensor& gates,
                             const Tensor& recurrent, const Tensor& stats, LSTM_FUSED_CELL_OPTIONS, bool want_input,
                             bool want_weights) {
  const Call call = LSTM_FUSED_CELL_CALL;
  const int64_t B = call.sizes.batch, H = call.sizes.hidden_size, P = call.sizes.projection_size;
  const bool norm = has_layer_norm(call.options);
  const auto saved = [](const char* name, const Tensor& tensor, bool wanted, Sizes shape,
                        ScalarType type) -> MaybeTensor {
    if (!wanted) return std::nullopt;
    return checked(name, tensor, shape, "of the forward pass", type);
  };
  const Forward kept = {std::nullopt,
                        std::nullopt,
                        std::nullopt,
                        std::nullopt,
                        std::nullopt,
                        saved("gates", gates, true, {B, 4 * H}, call.type),
                        saved("recurrent", recurrent, norm, {B, 4 * H}, call.type),
                        saved("stats", stats, norm, {B, 6}, call.accumulator())};
  // h is the only output: its gradient comes in as that of the final state.
  const Tensor none = torch::stable::new_zeros(*call.input, {1, B, P});
  return run_backward(call, kept, none, checked("d_h", d_h, {B, P}, "of h_0", call.type),
                      checked("d_c", d_c, {B, H}, "[B, H]", call.type), want_input, want_weights);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lstm_fused, CPU, m) {
  m.impl("lstm_layer", TORCH_BOX(&lstm_layer));
  m.impl("lstm_layer_inference", TORCH_BOX(&lstm_layer_inference));
  m.impl("lstm_layer_backward", TORCH_BOX(&lstm_layer_backward));
  m.impl("lstm_cell", TORCH_BOX(&lstm_cell));
  m.impl("lstm_cell_inference", TORCH_BOX(&lstm_cell_inference));
  m.impl("lstm_cell_plain", TORCH_BOX(&lstm_cell_plain));
  m.impl("lstm_cell_backward", TORCH_BOX(&lstm_cell_backward));
}

PyMODINIT_FUNC PyInit__ops(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_ops", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
