// The CPU implementations of the ops: tensors are taken apart here, and nowhere below. Half precision (bfloat16,
// float16) is how tensors come and go: a call computes in float32 and rounds what it gives. Where the CPU multiplies
// bfloat16, what the products of a bfloat16 call multiply is rounded to it too, but for a forward pass of few rows;
// their sums are float32.
#include "op_implementations.h"

#include <exception>
#include <mutex>

#include "cpu/layer.h"

namespace lstm_fused::cpu {

namespace {

// torch's thread pool. An exception of a task is thrown again in the calling thread.
Executor executor() {
  Executor executor;
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
T* pointer(const MaybeTensor& tensor) {
  return tensor && tensor->numel() ? static_cast<T*>(tensor->mutable_data_ptr()) : nullptr;
}

// f(float{}) or f(double{}).
template <class F>
void with_type(ScalarType type, F f) {
  if (type == ScalarType::Double)
    f(double{});
  else
    f(float{});
}

template <typename T>
LayerInputs<T> inputs(const Arguments& call) {
  const auto pointer = [](const MaybeTensor& tensor) { return tensor ? tensor->const_data_ptr<T>() : nullptr; };
  const int64_t* const lengths = call.lengths ? call.lengths->const_data_ptr<int64_t>() : nullptr;
  const bool* const reset = call.reset ? call.reset->const_data_ptr<bool>() : nullptr;
#define LSTM_FUSED_POINTER(name, ...) pointer(call.name),
#define LSTM_FUSED_WEIGHT_POINTERS LSTM_FUSED_WEIGHTS(LSTM_FUSED_POINTER, LSTM_FUSED_POINTER, LSTM_FUSED_NONE)
  return {pointer(call.input), LSTM_FUSED_STATE(LSTM_FUSED_POINTER) LSTM_FUSED_WEIGHT_POINTERS lengths, reset};
#undef LSTM_FUSED_POINTER
#undef LSTM_FUSED_WEIGHT_POINTERS
}

template <typename T>
LayerOutputs<T> outputs(const Arguments& call, const Forward& out) {
  const MaybeTensor& cells = call.is_cell ? out.c_n : out.cells;  // of a single step c_t is c_n
  return {pointer<T>(out.output),
          pointer<T>(out.h_n),
          pointer<T>(out.c_n),
          {pointer<T>(out.hidden), pointer<T>(cells), pointer<T>(out.gates), pointer<T>(out.recurrent),
           pointer<T>(out.stats)}};
}

struct Cpu {
  static ScalarType computed(ScalarType type) { return accumulator_of(type); }

  static void prepare(Arguments& call) {
    for (int64_t b = 0; call.lengths && b < call.sizes.batch; ++b) {
      const int64_t length = call.lengths->const_data_ptr<int64_t>()[b];
      check(length >= 0 && length <= call.sizes.steps, "lengths must be in 0..T = ", call.sizes.steps, ", got ", length,
            " at index ", b);
    }
    call.options.bfloat16 = call.type == ScalarType::BFloat16;
    if (call.seed) call.options.seed = static_cast<uint64_t>(*call.seed->const_data_ptr<int64_t>());
  }

  static void forward(const Arguments& call, const Forward& out) {
    with_type(call.computed, [&](auto zero) {
      using T = decltype(zero);
      layer_forward<T>(call.sizes, call.options, inputs<T>(call), outputs<T>(call, out), executor());
    });
  }

  static void backward(const Arguments& call, const Forward& saved, const Tensor& d_output, const Tensor& d_h_n,
                       const Tensor& d_c_n, const Gradients& out) {
    with_type(call.computed, [&](auto zero) {
      using T = decltype(zero);
#define LSTM_FUSED_POINTER(name, ...) , pointer<T>(out.name)
      const LayerGradients<T> gradients = {d_output.const_data_ptr<T>(), d_h_n.const_data_ptr<T>(),
                                           d_c_n.const_data_ptr<T>(),
                                           pointer<T>(out.d_input) LSTM_FUSED_GRADIENTS(LSTM_FUSED_POINTER)};
#undef LSTM_FUSED_POINTER
      layer_backward<T>(call.sizes, call.options, inputs<T>(call), outputs<T>(call, saved), gradients, executor());
    });
  }
};

}  // namespace

}  // namespace lstm_fused::cpu

STABLE_TORCH_LIBRARY_IMPL(lstm_fused, CPU, m) { lstm_fused::Ops<lstm_fused::cpu::Cpu>::implement(m); }
