// The kernels of one instruction set: compiled once for each, with LSTM_FUSED_ISA_NAME naming it. With the instruction
// set that adds bfloat16 products to another, the table of those alone.
#include "cpu/kernels.h"

#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/weight_gradient.h"

namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME {
namespace {

template <typename T, class F>
void apply(const T* x, T* y, int64_t n, F f) {
  for (int64_t k = 0; k < n; k += kLanes<T>) store(y + k, f(load(x + k, n - k)), n - k);
}

template <typename T>
void apply_sigmoid(const T* x, T* y, int64_t n) {
  apply(x, y, n, [](Vec<T> v) { return sigmoid(v); });
}

template <typename T>
void apply_tanh(const T* x, T* y, int64_t n) {
  apply(x, y, n, [](Vec<T> v) { return tanh(v); });
}

template <typename T>
int64_t gate_panels(int64_t hidden_size) {
  return GateColumns{hidden_size}.panels<T>();
}

template <typename T>
int64_t plain_panels(int64_t columns) {
  return PlainColumns{columns}.panels<T>();
}

template <typename T, typename O>
constexpr Kernels<T> make_table() {
  return {kGroup<O>,
          forward_scratch<T, O>,
          forward<T, O>,
          backward_scratch<T, O>,
          backward<T, O>,
          finish_backward<T, O>,
          gate_panels<T>,
          plain_panels<T>,
          kPanelColumns<T>,
          pack_gates<T, O>,
          pack_plain_weight<T, O>,
          pack_plain<T, O>,
          drop_weights<T>,
          scratch_stride,
          kPassRows,
          kGradientBlock,
          gradient_stride<T>,
          parameter_sums<T>,
          pack_transposed<T, O>,
          kPassOperands<T, O>,
          weight_gradient<T, O>,
          unpack_gradient<T>,
          apply_sigmoid<T>,
          apply_tanh<T>};
}

}  // namespace

#if defined(__AVX512BF16__)
extern const Kernels<float> pair_kernels;
const Kernels<float> pair_kernels = make_table<float, Pair>();
#else
extern const Kernels<float> float_kernels;
extern const Kernels<double> double_kernels;
const Kernels<float> float_kernels = make_table<float, float>();
const Kernels<double> double_kernels = make_table<double, double>();
#endif

}  // namespace lstm_fused::cpu::LSTM_FUSED_ISA_NAME
