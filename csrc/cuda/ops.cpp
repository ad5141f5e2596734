// The CUDA implementations of the ops: tensors are checked and taken apart here. Nothing here reads what a tensor on
// the device holds: that would wait for the device, and a call could not be captured in a CUDA graph. So a length past
// T is not an error as on the CPU; it means T, and one below 0 means 0.
#include "cuda/ops.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>

#include "cuda/layer.h"

namespace lstm_fused::cuda {

namespace {

using torch::headeronly::ScalarType;
using Sizes = std::initializer_list<int64_t>;

template <class Values>
std::string to_text(const Values& shape) {
  std::string text = "[";
  for (const int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

std::string to_text(ScalarType type) {
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

// One sentence for the caller.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw std::runtime_error(sentence.str());
}

// A contiguous tensor of the wanted shape and type, on the input's device.
Tensor checked(const char* name, const Tensor& input, const Tensor& tensor, Sizes shape, const char* letters,
               ScalarType type) {
  if (tensor.is_cuda() != input.is_cuda() || tensor.get_device_index() != input.get_device_index())
    fail(name, " must be on the device of the input, got another");
  if (tensor.scalar_type() != type) fail(name, " must be ", to_text(type), ", got ", to_text(tensor.scalar_type()));
  const auto sizes = tensor.sizes();
  if (!std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()))
    fail(name, " must have shape ", letters, " = ", to_text(shape), ", got ", to_text(sizes));
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

MaybeTensor checked(const char* name, const Tensor& input, const MaybeTensor& tensor, Sizes shape, const char* letters,
                    ScalarType type) {
  if (!tensor) return std::nullopt;
  return checked(name, input, *tensor, shape, letters, type);
}

void check_rate(const char* name, double rate) {
  if (!(rate >= 0 && rate < 1)) fail(name, " must be in [0, 1), got ", rate);
}

struct Weights {
  const Tensor &ih, &hh;
  const MaybeTensor &bias_ih, &bias_hh, &ln_ih, &ln_hh, &ln_c, &bias_ln_c, &bias_ln_ih, &bias_ln_hh, &hr, &ci, &cf, &co;
};

Arguments checked_arguments(const Tensor& input, const Tensor& h_0, const Tensor& c_0, const Weights& weights,
                            const MaybeTensor& lengths, const MaybeTensor& reset, const MaybeTensor& seed,
                            const LayerOptions& options, bool is_cell) {
  Arguments call;
  call.options = options;
  const ScalarType type = input.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::Double && type != ScalarType::Half &&
      type != ScalarType::BFloat16)
    fail("input must be float32, float64, float16 or bfloat16, got ", to_text(type));
  if (input.dim() != (is_cell ? 2 : 3))
    fail("input must have shape ", is_cell ? "[B, I]" : "[T, B, I]", ", got ", to_text(input.sizes()));
  if (weights.hh.dim() != 2) fail("weight_hh must have shape [4H, P], got ", to_text(weights.hh.sizes()));
  const int64_t T = is_cell ? 1 : input.size(0), B = input.size(is_cell ? 0 : 1), I = input.size(is_cell ? 1 : 2),
                H = weights.hh.size(0) / 4, P = weights.hh.size(1);
  if (H <= 0 || I <= 0 || P <= 0)
    fail("weight_ih and weight_hh must have at least one input and one hidden unit, got ", I, " and ", H);
  call.sizes = {T, B, I, H, P};

  const auto of = [&](const char* name, const auto& tensor, Sizes shape, const char* letters) {
    return checked(name, input, tensor, shape, letters, type);
  };
  call.input = is_cell ? of("input", input, {B, I}, "[B, I]") : of("input", input, {T, B, I}, "[T, B, I]");
  call.h_0 = of("h_0", h_0, {B, P}, "[B, P]");
  call.c_0 = of("c_0", c_0, {B, H}, "[B, H]");
  call.weight_ih = of("weight_ih", weights.ih, {4 * H, I}, "[4H, I]");
  call.weight_hh = of("weight_hh", weights.hh, {4 * H, P}, "[4H, P]");
  call.bias_ih = of("bias_ih", weights.bias_ih, {4 * H}, "[4H]");
  call.bias_hh = of("bias_hh", weights.bias_hh, {4 * H}, "[4H]");
  call.weight_ln_ih = of("weight_ln_ih", weights.ln_ih, {4 * H}, "[4H]");
  call.weight_ln_hh = of("weight_ln_hh", weights.ln_hh, {4 * H}, "[4H]");
  call.weight_ln_c = of("weight_ln_c", weights.ln_c, {H}, "[H]");
  call.bias_ln_c = of("bias_ln_c", weights.bias_ln_c, {H}, "[H]");
  const MaybeTensor bias_ln_ih = of("bias_ln_ih", weights.bias_ln_ih, {4 * H}, "[4H]");
  const MaybeTensor bias_ln_hh = of("bias_ln_hh", weights.bias_ln_hh, {4 * H}, "[4H]");
  call.weight_hr = of("weight_hr", weights.hr, {P, H}, "[P, H]");
  call.weight_ci = of("weight_ci", weights.ci, {H}, "[H]");
  call.weight_cf = of("weight_cf", weights.cf, {H}, "[H]");
  call.weight_co = of("weight_co", weights.co, {H}, "[H]");
  call.lengths = checked("lengths", input, lengths, {B}, "[B]", ScalarType::Long);
  call.reset = is_cell ? checked("reset", input, reset, {B}, "[B]", ScalarType::Bool)
                       : checked("reset", input, reset, {T, B}, "[T, B]", ScalarType::Bool);
  call.seed = checked("seed", input, seed, {}, "[]", ScalarType::Long);

  if (call.bias_ih.has_value() != call.bias_hh.has_value()) fail("bias_ih and bias_hh must be given together");
  const bool norm = call.weight_ln_ih.has_value();
  if (call.weight_ln_hh.has_value() != norm || call.weight_ln_c.has_value() != norm ||
      call.bias_ln_c.has_value() != norm)
    fail("weight_ln_ih, weight_ln_hh, weight_ln_c and bias_ln_c must be given together");
  if (bias_ln_ih.has_value() != bias_ln_hh.has_value()) fail("bias_ln_ih and bias_ln_hh must be given together");
  call.options.layer_norm = norm ? LayerNorm::ba2016 : LayerNorm::none;
  if (bias_ln_ih) {
    if (!norm) fail("bias_ln_ih and bias_ln_hh must be None without layer norm");
    if (call.bias_ih) fail("bias_ih and bias_hh must be None when bias_ln_ih and bias_ln_hh are given");
    call.options.layer_norm = LayerNorm::carry;
    call.bias_ih = bias_ln_ih;
    call.bias_hh = bias_ln_hh;
  }
  call.options.projection = call.weight_hr.has_value();
  if (!call.options.projection && P != H)
    fail("weight_hh must have shape [4H, H] without weight_hr, got ", to_text(weights.hh.sizes()));
  call.options.peephole = call.weight_ci.has_value();
  if (call.weight_cf.has_value() != call.options.peephole || call.weight_co.has_value() != call.options.peephole)
    fail("weight_ci, weight_cf and weight_co must be given together");

  check_rate("dropout", options.dropout);
  check_rate("recurrent_dropout", options.recurrent_dropout);
  check_rate("candidate_dropout", options.candidate_dropout);
  check_rate("weight_dropout", options.weight_dropout);
  check_rate("zoneout_h", options.zoneout_h);
  check_rate("zoneout_c", options.zoneout_c);
  if (call.options.projection && options.zoneout_h > 0)
    fail("zoneout_h must be 0 with a projection, got ", options.zoneout_h);
  if (options.open_gates & ~int64_t{7}) fail("open_gates must be in 0..7, got ", options.open_gates);
  if (norm && !(options.eps > 0)) fail("eps must be positive, got ", options.eps);
  if (options.stream < 0 || options.stream >= (int64_t{1} << 29))
    fail("stream must be in [0, 2^29), got ", options.stream);
  if (options.first_step < 0) fail("step must not be negative, got ", options.first_step);
  if (options.training && (options.dropout > 0 || options.recurrent_dropout > 0 || options.candidate_dropout > 0 ||
                           options.weight_dropout > 0 || options.zoneout_h > 0 || options.zoneout_c > 0)) {
    if (!call.seed) fail("seed must be given when a rate is above 0 in training, got None");
    if (std::max(T, B) >= (int64_t{1} << 32) || options.first_step >= (int64_t{1} << 32) - std::max(T, B))
      fail("T, B and step must be below 2^32 when masks are drawn");
  }
  return call;
}

// f(T{}) with the type that the tensors hold.
template <class F>
void with_type(ScalarType type, F f) {
  switch (type) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(__half{});
    default:
      return f(__nv_bfloat16{});
  }
}

// Makes the tensor's device the current one, and knows the stream that the caller queues work on.
struct Device {
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream = nullptr;

  explicit Device(const Tensor& tensor) : guard(tensor.get_device_index()) {
    void* current = nullptr;
    if (aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &current) != 0)
      fail("torch could not tell its current CUDA stream");
    stream = static_cast<cudaStream_t>(current);
  }
};

Tensor empty(const Tensor& like, Sizes shape) { return torch::stable::new_empty(like, {shape.begin(), shape.size()}); }

Tensor accumulators(const Tensor& like, Sizes shape) {
  const ScalarType type = like.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  return torch::stable::new_empty(like, {shape.begin(), shape.size()}, type);
}

// What was not made, as an op returns it.
Tensor returned(const Tensor& like, const MaybeTensor& tensor) { return tensor ? *tensor : empty(like, {0}); }

bool saves_hidden(const Arguments& call) { return call.options.training && call.options.dropout > 0; }

Forward run_forward(const Arguments& call, bool saves, bool is_cell) {
  const Tensor& like = *call.input;
  const Device device(like);
  const int64_t T = call.sizes.steps, B = call.sizes.batch, H = call.sizes.hidden_size, P = call.sizes.projection_size;
  const bool norm = has_layer_norm(call.options);
  Forward out;
  out.h_n = empty(like, {B, P});
  out.c_n = empty(like, {B, H});
  out.output = is_cell ? *out.h_n : empty(like, {T, B, P});
  if (saves && is_cell) {
    out.gates = empty(like, {B, 4 * H});
    if (norm) out.recurrent = empty(like, {B, 4 * H});
    if (norm) out.stats = accumulators(like, {B, 6});
  } else if (saves) {
    if (saves_hidden(call)) out.hidden = empty(like, {T, B, P});
    out.cells = accumulators(like, {T, B, H});
    out.gates = empty(like, {T, B, 4 * H});
    if (norm) out.recurrent = empty(like, {T, B, 4 * H});
    if (norm) out.stats = accumulators(like, {T, B, 6});
  }
  with_type(like.scalar_type(), [&](auto zero) { layer_forward<decltype(zero)>(call, out, device.stream); });
  return out;
}

using GradientTuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                                 Tensor, Tensor, Tensor>;

GradientTuple run_backward(const Arguments& call, const Forward& saved, const Tensor& d_output, const Tensor& d_h_n,
                           const Tensor& d_c_n, bool want_input, bool want_weights) {
  const Tensor& like = *call.input;
  const Device device(like);
  const int64_t B = call.sizes.batch, I = call.sizes.input_size, H = call.sizes.hidden_size,
                P = call.sizes.projection_size;
  const bool norm = has_layer_norm(call.options);
  Gradients grad;
  if (want_input) grad.d_input = like.dim() == 2 ? empty(like, {B, I}) : empty(like, {call.sizes.steps, B, I});
  grad.d_h_0 = empty(like, {B, P});
  grad.d_c_0 = empty(like, {B, H});
  if (want_weights) {
    grad.d_weight_ih = empty(like, {4 * H, I});
    grad.d_weight_hh = empty(like, {4 * H, P});
    grad.d_bias = empty(like, {4 * H});
    if (norm) {
      grad.d_weight_ln_ih = empty(like, {4 * H});
      grad.d_weight_ln_hh = empty(like, {4 * H});
      grad.d_weight_ln_c = empty(like, {H});
      grad.d_bias_ln_c = empty(like, {H});
    }
    if (call.options.projection) grad.d_weight_hr = empty(like, {P, H});
    if (call.options.peephole) {
      grad.d_weight_ci = empty(like, {H});
      grad.d_weight_cf = empty(like, {H});
      grad.d_weight_co = empty(like, {H});
    }
  }
  with_type(like.scalar_type(), [&](auto zero) {
    layer_backward<decltype(zero)>(call, saved, d_output, d_h_n, d_c_n, grad, device.stream);
  });
  const auto all = [&](const MaybeTensor& tensor) { return returned(like, tensor); };
  return {all(grad.d_input),       all(grad.d_h_0),       all(grad.d_c_0),          all(grad.d_weight_ih),
          all(grad.d_weight_hh),   all(grad.d_bias),      all(grad.d_weight_ln_ih), all(grad.d_weight_ln_hh),
          all(grad.d_weight_ln_c), all(grad.d_bias_ln_c), all(grad.d_weight_hr),    all(grad.d_weight_ci),
          all(grad.d_weight_cf),   all(grad.d_weight_co)};
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
#define LSTM_FUSED_GIVEN_WEIGHTS                                                                            \
  Weights {                                                                                                 \
    weight_ih, weight_hh, bias_ih, bias_hh, weight_ln_ih, weight_ln_hh, weight_ln_c, bias_ln_c, bias_ln_ih, \
        bias_ln_hh, weight_hr, weight_ci, weight_cf, weight_co                                              \
  }
#define LSTM_FUSED_STEP_VALUES \
  recurrent_dropout, candidate_dropout, weight_dropout, zoneout_h, zoneout_c, open_gates, training, eps, stream
#define LSTM_FUSED_LAYER_CALL                                                        \
  checked_arguments(input, h_0, c_0, LSTM_FUSED_GIVEN_WEIGHTS, lengths, reset, seed, \
                    layer_options(reverse, dropout, variational, 0, LSTM_FUSED_STEP_VALUES), false)
#define LSTM_FUSED_CELL_CALL                                                              \
  checked_arguments(input, h_0, c_0, LSTM_FUSED_GIVEN_WEIGHTS, std::nullopt, reset, seed, \
                    layer_options(false, 0, false, step, LSTM_FUSED_STEP_VALUES), true)

LayerOptions layer_options(bool reverse, double dropout, bool variational, int64_t first_step,
                           LSTM_FUSED_STEP_OPTIONS) {
  LayerOptions options;
  options.reverse = reverse;
  options.dropout = dropout;
  options.variational = variational;
  options.first_step = first_step;
  options.recurrent_dropout = recurrent_dropout;
  options.candidate_dropout = candidate_dropout;
  options.weight_dropout = weight_dropout;
  options.zoneout_h = zoneout_h;
  options.zoneout_c = zoneout_c;
  options.open_gates = open_gates;
  options.training = training;
  options.eps = eps;
  options.stream = stream;
  return options;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> lstm_layer(LSTM_FUSED_LAYER_INPUTS,
                                                                                      LSTM_FUSED_LAYER_OPTIONS) {
  const Forward out = run_forward(LSTM_FUSED_LAYER_CALL, true, false);
  return {*out.output,
          *out.h_n,
          *out.c_n,
          returned(input, out.hidden),
          *out.cells,
          *out.gates,
          returned(input, out.recurrent),
          returned(input, out.stats)};
}

std::tuple<Tensor, Tensor, Tensor> lstm_layer_inference(LSTM_FUSED_LAYER_INPUTS, LSTM_FUSED_LAYER_OPTIONS) {
  const Forward out = run_forward(LSTM_FUSED_LAYER_CALL, false, false);
  return {*out.output, *out.h_n, *out.c_n};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_cell(LSTM_FUSED_CELL_INPUTS, LSTM_FUSED_CELL_OPTIONS) {
  const Forward out = run_forward(LSTM_FUSED_CELL_CALL, true, true);
  return {*out.h_n, *out.c_n, *out.gates, returned(input, out.recurrent), returned(input, out.stats)};
}

std::tuple<Tensor, Tensor> lstm_cell_inference(LSTM_FUSED_CELL_INPUTS, LSTM_FUSED_CELL_OPTIONS) {
  const Forward out = run_forward(LSTM_FUSED_CELL_CALL, false, true);
  return {*out.h_n, *out.c_n};
}

std::tuple<Tensor, Tensor> lstm_cell_plain(const Tensor& input, const Tensor& h_0, const Tensor& c_0,
                                           const Tensor& weight_ih, const Tensor& weight_hh, const MaybeTensor& bias_ih,
                                           const MaybeTensor& bias_hh) {
  const MaybeTensor none;
  const Forward out = run_forward(checked_arguments(input, h_0, c_0,
                                                    {weight_ih, weight_hh, bias_ih, bias_hh, none, none, none, none,
                                                     none, none, none, none, none, none},
                                                    none, none, none, LayerOptions{}, true),
                                  false, true);
  return {*out.h_n, *out.c_n};
}

GradientTuple lstm_layer_backward(const Tensor& d_output, const Tensor& d_h_n, const Tensor& d_c_n,
                                  LSTM_FUSED_LAYER_INPUTS, const Tensor& output, const Tensor& hidden,
                                  const Tensor& cells, const Tensor& gates, const Tensor& recurrent,
                                  const Tensor& stats, LSTM_FUSED_LAYER_OPTIONS, bool want_input, bool want_weights) {
  const Arguments call = LSTM_FUSED_LAYER_CALL;
  const int64_t T = call.sizes.steps, B = call.sizes.batch, H = call.sizes.hidden_size, P = call.sizes.projection_size;
  const ScalarType type = input.scalar_type(),
                   accumulator = type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const auto saved = [&](const char* name, const Tensor& tensor, Sizes shape, ScalarType type) {
    return checked(name, input, tensor, shape, "of the forward pass", type);
  };
  Forward kept;
  if (saves_hidden(call))
    kept.hidden = saved("hidden", hidden, {T, B, P}, type);
  else
    kept.output = saved("output", output, {T, B, P}, type);
  kept.cells = saved("cells", cells, {T, B, H}, accumulator);
  kept.gates = saved("gates", gates, {T, B, 4 * H}, type);
  if (has_layer_norm(call.options)) {
    kept.recurrent = saved("recurrent", recurrent, {T, B, 4 * H}, type);
    kept.stats = saved("stats", stats, {T, B, 6}, accumulator);
  }
  return run_backward(call, kept, checked("d_output", input, d_output, {T, B, P}, "[T, B, P]", type),
                      checked("d_h_n", input, d_h_n, {B, P}, "[B, P]", type),
                      checked("d_c_n", input, d_c_n, {B, H}, "[B, H]", type), want_input, want_weights);
}

GradientTuple lstm_cell_backward(const Tensor& d_h, const Tensor& d_c, LSTM_FUSED_CELL_INPUTS, const Tensor& gates,
                                 const Tensor& recurrent, const Tensor& stats, LSTM_FUSED_CELL_OPTIONS, bool want_input,
                                 bool want_weights) {
  const Arguments call = LSTM_FUSED_CELL_CALL;
  const int64_t B = call.sizes.batch, H = call.sizes.hidden_size, P = call.sizes.projection_size;
  const ScalarType type = input.scalar_type(),
                   accumulator = type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Forward kept;
  kept.output = call.h_0;  // not read: a single step starts from h_0
  kept.gates = checked("gates", input, gates, {B, 4 * H}, "of the forward pass", type);
  if (has_layer_norm(call.options)) {
    kept.recurrent = checked("recurrent", input, recurrent, {B, 4 * H}, "of the forward pass", type);
    kept.stats = checked("stats", input, stats, {B, 6}, "of the forward pass", accumulator);
  }
  // h is the only output: its gradient comes in as that of the final state.
  const int64_t shape[] = {B, P};
  const Tensor none = torch::stable::new_zeros(input, {shape, 2});
  return run_backward(call, kept, none, checked("d_h", input, d_h, {B, P}, "[B, P]", type),
                      checked("d_c", input, d_c, {B, H}, "[B, H]", type), want_input, want_weights);
}

}  // namespace

void implement_ops(torch::stable::detail::StableLibrary& library) {
  library.impl("lstm_layer", TORCH_BOX(&lstm_layer));
  library.impl("lstm_layer_inference", TORCH_BOX(&lstm_layer_inference));
  library.impl("lstm_layer_backward", TORCH_BOX(&lstm_layer_backward));
  library.impl("lstm_cell", TORCH_BOX(&lstm_cell));
  library.impl("lstm_cell_inference", TORCH_BOX(&lstm_cell_inference));
  library.impl("lstm_cell_plain", TORCH_BOX(&lstm_cell_plain));
  library.impl("lstm_cell_backward", TORCH_BOX(&lstm_cell_backward));
}

}  // namespace lstm_fused::cuda
