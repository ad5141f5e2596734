// The CUDA implementations of the ops. Nothing here reads what a tensor on the device holds: that would wait for the
// device, and a call could not be captured in a CUDA graph. So a length past T is not an error as on the CPU; it means
// T, and one below 0 means 0.
#include "cuda/ops.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "cuda/layer.h"

namespace lstm_fused::cuda {

namespace {

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
    check(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &current) == 0,
          "torch could not tell its current CUDA stream");
    stream = static_cast<cudaStream_t>(current);
  }
};

struct Cuda {
  static ScalarType computed(ScalarType type) { return type; }
  static void prepare(Arguments&) {}

  static void forward(const Arguments& call, const Forward& out) {
    const Device device(*call.input);
    with_type(call.type, [&](auto zero) { layer_forward<decltype(zero)>(call, out, device.stream); });
  }

  static void backward(const Arguments& call, const Forward& saved, const Tensor& d_output, const Tensor& d_h_n,
                       const Tensor& d_c_n, const Gradients& out) {
    const Device device(*call.input);
    with_type(call.type, [&](auto zero) {
      layer_backward<decltype(zero)>(call, saved, d_output, d_h_n, d_c_n, out, device.stream);
    });
  }
};

}  // namespace

void implement_ops(torch::stable::detail::StableLibrary& library) { Ops<Cuda>::implement(library); }

}  // namespace lstm_fused::cuda
