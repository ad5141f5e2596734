// The arguments of an op, for every backend: checked, and made contiguous. A wrong one is an error of one sentence.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "lstm/problem.h"

namespace lstm_fused {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Sizes = std::initializer_list<int64_t>;

template <class Values>
std::string to_text(const Values& shape) {
  std::string text = "[";
  for (const int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

inline std::string to_text(ScalarType type) {
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

// What torch says of the error that a function of its C interface has just returned. torch 2.13 and later can be asked;
// before, it goes to the standard error and nowhere else.
inline std::string reason_of_torch() {
  using What = const char* (*)();
  static const auto what =
      reinterpret_cast<What>(dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace"));  // null: there is none
  const char* const text = what ? what() : nullptr;
  return text && *text ? std::string(": ") + text : " (torch has printed why to the standard error)";
}

// f(), a call of torch's; one that fails is told with its reason.
template <class F>
auto reasoned(const char* what, F f) {
  try {
    return f();
  } catch (const std::runtime_error&) {  // which says where in torch's headers it was thrown
    fail("torch could not ", what, reason_of_torch());
  }
}

// Statistics and cell state are of this type.
inline ScalarType accumulator_of(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

struct Weights {
  const Tensor &ih, &hh;
  const MaybeTensor &bias_ih, &bias_hh, &ln_ih, &ln_hh, &ln_c, &bias_ln_c, &bias_ln_ih, &bias_ln_hh, &hr, &ci, &cf, &co;
};

struct Arguments {
  LayerSizes sizes{};
  LayerOptions options;
  ScalarType type;      // of the tensors that came and of those that go
  ScalarType computed;  // of the tensors here: what the backend computes with, as float32 for half precision
  bool is_cell;
  // All optional, those always there too: a Tensor that is not given yet would be an allocation.
  MaybeTensor input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh;
  MaybeTensor weight_ln_ih, weight_ln_hh, weight_ln_c, bias_ln_c;  // bias_ln_ih and bias_ln_hh are bias_ih and bias_hh
  MaybeTensor weight_hr, weight_ci, weight_cf, weight_co, lengths, reset, seed;

  Arguments(const Tensor& given_input, const Tensor& given_h_0, const Tensor& given_c_0, const Weights& weights,
            const MaybeTensor& given_lengths, const MaybeTensor& given_reset, const MaybeTensor& given_seed,
            const LayerOptions& given_options, ScalarType computed, bool is_cell)
      : options(given_options),
        type(given_input.scalar_type()),
        computed(computed),
        is_cell(is_cell),
        on_cpu(given_input.is_cpu()),
        device_index(on_cpu ? 0 : given_input.get_device_index()) {
    if (given_input.dim() != (is_cell ? 2 : 3))
      fail("input must have shape ", is_cell ? "[B, I]" : "[T, B, I]", ", got ", to_text(given_input.sizes()));
    options.projection = weights.hr.has_value();
    // What the shape of h and weight_hh is called in an error: there is no P without a projection.
    const char* const h_letters = options.projection ? "[B, P]" : "[B, H]";
    const char* const hh_letters = options.projection ? "[4H, P]" : "[4H, H]";
    if (weights.hh.dim() != 2) fail("weight_hh must have shape ", hh_letters, ", got ", to_text(weights.hh.sizes()));
    if (options.projection && weights.hr->dim() != 2)
      fail("weight_hr must have shape [P, H], got ", to_text(weights.hr->sizes()));
    sizes.steps = is_cell ? 1 : given_input.size(0);
    sizes.batch = given_input.size(is_cell ? 0 : 1);
    sizes.input_size = given_input.size(is_cell ? 1 : 2);
    sizes.projection_size = weights.hh.size(1);
    sizes.hidden_size = options.projection ? weights.hr->size(1) : sizes.projection_size;
    const auto [T, B, I, H, P] = sizes;
    check(H > 0 && I > 0 && P > 0, "weight_ih and weight_hh must have at least one input and one hidden unit, got ", I,
          " and ", std::min(H, P));

    input = is_cell ? checked("input", given_input, {B, I}, "[B, I]")
                    : checked("input", given_input, {T, B, I}, "[T, B, I]");
    h_0 = checked("h_0", given_h_0, {B, P}, h_letters);
    c_0 = checked("c_0", given_c_0, {B, H}, "[B, H]");
    weight_ih = checked("weight_ih", weights.ih, {4 * H, I}, "[4H, I]");
    weight_hh = checked("weight_hh", weights.hh, {4 * H, P}, hh_letters);
    bias_ih = checked("bias_ih", weights.bias_ih, {4 * H}, "[4H]");
    bias_hh = checked("bias_hh", weights.bias_hh, {4 * H}, "[4H]");
    check(bias_ih.has_value() == bias_hh.has_value(), "bias_ih and bias_hh must be given together");
    check_layer_norm(weights);
    weight_hr = checked("weight_hr", weights.hr, {P, H}, "[P, H]");
    weight_ci = checked("weight_ci", weights.ci, {H}, "[H]");
    weight_cf = checked("weight_cf", weights.cf, {H}, "[H]");
    weight_co = checked("weight_co", weights.co, {H}, "[H]");
    options.peephole = weight_ci.has_value();
    check(weight_cf.has_value() == options.peephole && weight_co.has_value() == options.peephole,
          "weight_ci, weight_cf and weight_co must be given together");

    lengths = checked("lengths", given_lengths, {B}, "[B]", ScalarType::Long);
    reset = is_cell ? checked("reset", given_reset, {B}, "[B]", ScalarType::Bool)
                    : checked("reset", given_reset, {T, B}, "[T, B]", ScalarType::Bool);
    seed = checked("seed", given_seed, {}, "[]", ScalarType::Long);
    check_options();
  }

  // A contiguous tensor of the wanted shape and type, on the input's device; or one sentence.
  Tensor checked(const char* name, const Tensor& tensor, Sizes shape, const char* letters, ScalarType wanted) const {
    if (on_cpu ? !tensor.is_cpu() : !tensor.is_cuda() || tensor.get_device_index() != device_index)
      fail(name, " must be on the device of the input, got another");
    if (tensor.scalar_type() != wanted)
      fail(name, " must be ", to_text(wanted), ", got ", to_text(tensor.scalar_type()));
    const auto sizes = tensor.sizes();
    if (!std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()))
      fail(name, " must have shape ", letters, " = ", to_text(shape), ", got ", to_text(sizes));
    if (tensor.is_contiguous() && (wanted != type || type == computed)) return tensor;
    return reasoned("allocate a copy of an argument", [&] {
      const Tensor contiguous = tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
      return wanted == type && type != computed ? torch::stable::to(contiguous, computed) : contiguous;
    });
  }
  Tensor checked(const char* name, const Tensor& tensor, Sizes shape, const char* letters) const {
    return checked(name, tensor, shape, letters, type);
  }
  MaybeTensor checked(const char* name, const MaybeTensor& tensor, Sizes shape, const char* letters,
                      ScalarType wanted) const {
    if (!tensor) return std::nullopt;
    return checked(name, *tensor, shape, letters, wanted);
  }
  MaybeTensor checked(const char* name, const MaybeTensor& tensor, Sizes shape, const char* letters) const {
    return checked(name, tensor, shape, letters, type);
  }

  // Whether h is something else than the output, and a forward pass keeps it.
  bool saves_hidden() const { return options.training && options.dropout > 0 && !is_cell; }

  // Whether a forward pass keeps the states between segments, and no more.
  bool saves_states() const { return options.recompute > 0; }

  Tensor empty(Sizes shape) const { return empty(shape, computed); }
  Tensor empty_accumulators(Sizes shape) const { return empty(shape, accumulator_of(type)); }

  // A result as the op gives it: in the type of the call, and an empty tensor in the place of what is not there.
  Tensor given(const MaybeTensor& tensor) const {
    if (!tensor) return empty({0}, type);
    return type != computed ? torch::stable::to(*tensor, type) : *tensor;
  }
  // What is there for the backward pass: as it was computed. To round it and back took a fifth of a step's time.
  Tensor kept(const MaybeTensor& tensor) const { return tensor ? *tensor : empty({0}, type); }

 private:
  bool on_cpu;
  int32_t device_index;

  // As torch::stable::new_empty, which asks more of the tensor in every call.
  Tensor empty(Sizes shape, ScalarType of) const {
    int32_t number = of == computed ? 0 : torch::stable::detail::to<int32_t>(torch::stable::detail::from(of));
    AtenTensorHandle tensor = nullptr;
    if (aoti_torch_aten_new_empty(input->get(), shape.begin(), static_cast<int64_t>(shape.size()),
                                  of == computed ? nullptr : &number, nullptr, nullptr, 0, nullptr, &tensor) != 0)
      fail("torch could not allocate a tensor of shape ", to_text(shape), reason_of_torch());
    return Tensor(tensor);
  }

  // The tensors of layer norm, and its kind. The biases of "carry" take the place of the others.
  void check_layer_norm(const Weights& weights) {
    const int64_t H = sizes.hidden_size;
    weight_ln_ih = checked("weight_ln_ih", weights.ln_ih, {4 * H}, "[4H]");
    weight_ln_hh = checked("weight_ln_hh", weights.ln_hh, {4 * H}, "[4H]");
    weight_ln_c = checked("weight_ln_c", weights.ln_c, {H}, "[H]");
    bias_ln_c = checked("bias_ln_c", weights.bias_ln_c, {H}, "[H]");
    const bool norm = weight_ln_ih.has_value();
    check(weight_ln_hh.has_value() == norm && weight_ln_c.has_value() == norm && bias_ln_c.has_value() == norm,
          "weight_ln_ih, weight_ln_hh, weight_ln_c and bias_ln_c must be given together");
    options.layer_norm = norm ? LayerNorm::ba2016 : LayerNorm::none;
    check(options.eps > 0 || !norm, "eps must be positive, got ", options.eps);
    check(weights.bias_ln_ih.has_value() == weights.bias_ln_hh.has_value(),
          "bias_ln_ih and bias_ln_hh must be given together");
    if (!weights.bias_ln_ih) return;
    check(norm, "weight_ln_ih, weight_ln_hh, weight_ln_c and bias_ln_c must be given with bias_ln_ih and bias_ln_hh");
    check(!bias_ih, "bias_ih and bias_hh must be None with bias_ln_ih and bias_ln_hh, which take their place");
    options.layer_norm = LayerNorm::carry;
    bias_ih = checked("bias_ln_ih", weights.bias_ln_ih, {4 * H}, "[4H]");
    bias_hh = checked("bias_ln_hh", weights.bias_ln_hh, {4 * H}, "[4H]");
  }

  void check_options() const {
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
    check(options.recompute >= 0, "recompute must be a number of steps, or 0 to save all, got ", options.recompute);
    check(options.first_step >= 0, "step must not be negative, got ", options.first_step);
    if (!options.training || highest == 0) return;
    check(seed.has_value(), "seed must be given when a rate is above 0 in training, got None");
    check(rows < (int64_t{1} << 32) && options.first_step < (int64_t{1} << 32) - rows,
          "T, B, 4H and step must be below 2^32 when masks are drawn");
  }
};

}  // namespace lstm_fused
