// The arguments of an op, for every backend: checked, and made contiguous. A wrong one is an error of one sentence.
#pragma once

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

// In torch 2.13 and later; null in older ones.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

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
  const bool can_be_asked = torch_exception_get_what_without_backtrace != nullptr;
  const char* const text = can_be_asked ? torch_exception_get_what_without_backtrace() : nullptr;
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

#define LSTM_FUSED_GIVEN(name, ...) const Tensor& name;
#define LSTM_FUSED_MAYBE(name, ...) const MaybeTensor& name;
struct Weights {
  LSTM_FUSED_WEIGHTS(LSTM_FUSED_GIVEN, LSTM_FUSED_MAYBE, LSTM_FUSED_MAYBE)
};
#undef LSTM_FUSED_GIVEN
#undef LSTM_FUSED_MAYBE

struct Arguments {
  LayerSizes sizes{};
  LayerOptions options;
  ScalarType type;      // of the tensors that came and of those that go
  ScalarType computed;  // of the tensors here: what the backend computes with, as float32 for half precision
  bool is_cell;
  // All optional, those always there too: a Tensor that is not given yet would be an allocation.
  // With "carry" bias_ln_ih and bias_ln_hh are bias_ih and bias_hh too.
#define LSTM_FUSED_MAYBE(name, ...) MaybeTensor name;
  MaybeTensor input, lengths, reset, seed;
  LSTM_FUSED_STATE(LSTM_FUSED_MAYBE)
  LSTM_FUSED_WEIGHTS(LSTM_FUSED_MAYBE, LSTM_FUSED_MAYBE, LSTM_FUSED_MAYBE)
#undef LSTM_FUSED_MAYBE

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
    const MaybeTensor& hr = weights.weight_hr;
    options.projection = hr.has_value();
    if (weights.weight_hh.dim() != 2)
      fail("weight_hh must have shape ", shape_text("4 * H, P"), ", got ", to_text(weights.weight_hh.sizes()));
    if (hr && hr->dim() != 2) fail("weight_hr must have shape [P, H], got ", to_text(hr->sizes()));
    sizes.steps = is_cell ? 1 : given_input.size(0);
    sizes.batch = given_input.size(is_cell ? 0 : 1);
    sizes.input_size = given_input.size(is_cell ? 1 : 2);
    sizes.projection_size = weights.weight_hh.size(1);
    sizes.hidden_size = hr ? hr->size(1) : sizes.projection_size;
    const auto [T, B, I, H, P] = sizes;
    check(H > 0 && I > 0 && P > 0, "weight_ih and weight_hh must have at least one input and one hidden unit, got ", I,
          " and ", std::min(H, P));

    input =
        is_cell ? checked("input", given_input, {B, I}, "B, I") : checked("input", given_input, {T, B, I}, "T, B, I");
    h_0 = checked("h_0", given_h_0, {B, P}, "B, P");
    c_0 = checked("c_0", given_c_0, {B, H}, "B, H");
#define LSTM_FUSED_CHECKED(name, ...) name = checked(#name, weights.name, {__VA_ARGS__}, #__VA_ARGS__);
    LSTM_FUSED_WEIGHTS(LSTM_FUSED_CHECKED, LSTM_FUSED_CHECKED, LSTM_FUSED_CHECKED)
#undef LSTM_FUSED_CHECKED
    check(bias_ih.has_value() == bias_hh.has_value(), "bias_ih and bias_hh must be given together");
    check_layer_norm();
    options.peephole = weight_ci.has_value();
    check(weight_cf.has_value() == options.peephole && weight_co.has_value() == options.peephole,
          "weight_ci, weight_cf and weight_co must be given together");

    lengths = checked("lengths", given_lengths, {B}, "B", ScalarType::Long);
    reset = is_cell ? checked("reset", given_reset, {B}, "B", ScalarType::Bool)
                    : checked("reset", given_reset, {T, B}, "T, B", ScalarType::Bool);
    seed = checked("seed", given_seed, {}, "", ScalarType::Long);
    check_options();
  }

  // A contiguous tensor of the wanted shape and type, on the input's device; or one sentence, in which the shape is
  // named by its letters: "4 * H, I".
  Tensor checked(const char* name, const Tensor& tensor, Sizes shape, const char* letters, ScalarType wanted) const {
    if (on_cpu ? !tensor.is_cpu() : !tensor.is_cuda() || tensor.get_device_index() != device_index)
      fail(name, " must be on the device of the input, got another");
    if (tensor.scalar_type() != wanted)
      fail(name, " must be ", to_text(wanted), ", got ", to_text(tensor.scalar_type()));
    const auto sizes = tensor.sizes();
    if (!std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()))
      fail(name, " must have shape ", shape_text(letters), " = ", to_text(shape), ", got ", to_text(sizes));
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

  // "[4H, I]" of "4 * H, I"; a shape of another kind as it is. There is no P without a projection.
  std::string shape_text(std::string letters) const {
    if (letters.rfind("of ", 0) == 0) return letters;
    for (size_t at; (at = letters.find(" * ")) != std::string::npos;) letters.erase(at, 3);
    if (!options.projection) std::replace(letters.begin(), letters.end(), 'P', 'H');
    return "[" + letters + "]";
  }

  // The tensors of layer norm, and its kind. The biases of "carry" take the place of the others.
  void check_layer_norm() {
    const bool norm = weight_ln_ih.has_value();
    check(weight_ln_hh.has_value() == norm && weight_ln_c.has_value() == norm && bias_ln_c.has_value() == norm,
          "weight_ln_ih, weight_ln_hh, weight_ln_c and bias_ln_c must be given together");
    options.layer_norm = norm ? LayerNorm::ba2016 : LayerNorm::none;
    check(options.eps > 0 || !norm, "eps must be positive, got ", options.eps);
    check(bias_ln_ih.has_value() == bias_ln_hh.has_value(), "bias_ln_ih and bias_ln_hh must be given together");
    if (!bias_ln_ih) return;
    check(norm, "weight_ln_ih, weight_ln_hh, weight_ln_c and bias_ln_c must be given with bias_ln_ih and bias_ln_hh");
    check(!bias_ih, "bias_ih and bias_hh must be None with bias_ln_ih and bias_ln_hh, which take their place");
    options.layer_norm = LayerNorm::carry;
    bias_ih = bias_ln_ih;
    bias_hh = bias_ln_hh;
  }

  void check_options() const {
    const int64_t rows = std::max({sizes.steps, sizes.batch, 4 * sizes.hidden_size});  // of masks
    double highest = 0;
    const auto check_rate = [&](const char* name, double rate) {
      check(rate >= 0 && rate < 1, name, " must be in [0, 1), got ", rate);
      highest = std::max(highest, rate);
    };
#define LSTM_FUSED_CHECK_RATE(name) check_rate(#name, options.name);
    LSTM_FUSED_LAYER_OPTIONS(LSTM_FUSED_CHECK_RATE, LSTM_FUSED_NONE, LSTM_FUSED_NONE, LSTM_FUSED_NONE)
#undef LSTM_FUSED_CHECK_RATE
    check(options.zoneout_h == 0 || !options.projection, "zoneout_h must be 0 with a projection (weight_hr), got ",
          options.zoneout_h);
#define LSTM_FUSED_CHECK_CHOICE(name, values, what) \
  check(options.name >= 0 && options.name < values, #name " must be ", what, ", got ", options.name);
    LSTM_FUSED_CELL_CHOICES(LSTM_FUSED_CHECK_CHOICE)
#undef LSTM_FUSED_CHECK_CHOICE
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
