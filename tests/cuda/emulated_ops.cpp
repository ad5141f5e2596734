// The CUDA backend on the CPU: every op of csrc/cuda registered for CPU tensors, in the place of the CPU's own kernels.
// The matrix products are torch's, as on the GPU; the kernels run in the emulator.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>

#include "cuda/layer.h"
#include "cuda/ops.h"
#include "cuda_runtime.h"

// What the backend asks torch about CUDA devices. This library's own answers come before torch's: there is no device to
// choose and no stream to wait for.
extern "C" {
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return 0;
}
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return 0; }
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

// The functions for products by their names on CUDA, and how often each was called.
int64_t direct_products = 0, wide_products = 0;
__attribute__((visibility("default"))) AOTITorchError aoti_torch_cuda_mm_out(AtenTensorHandle out, AtenTensorHandle a,
                                                                             AtenTensorHandle b) {
  ++direct_products;
  return aoti_torch_cpu_mm_out(out, a, b);
}

// For Python, through ctypes.
__attribute__((visibility("default"))) int64_t lstm_fused_emulator_direct_products() { return direct_products; }
__attribute__((visibility("default"))) int64_t lstm_fused_emulator_wide_products() { return wide_products; }
__attribute__((visibility("default"))) void lstm_fused_emulator_by_dispatcher(bool by) {
  lstm_fused::cuda::by_dispatcher = by;
}
__attribute__((visibility("default"))) void lstm_fused_emulator_seed(uint32_t seed) { emulator::seed = seed; }
__attribute__((visibility("default"))) void lstm_fused_emulator_chunk(int64_t values) {
  lstm_fused::cuda::chunk_values = values;
}
__attribute__((visibility("default"))) int64_t lstm_fused_emulator_launches() { return emulator::launches; }
}

// aten::mm.dtype_out, which torch has on CUDA alone.
using torch::stable::Tensor;
Tensor mm_dtype_out(const Tensor& a, const Tensor& b, torch::headeronly::ScalarType type, Tensor out) {
  ++wide_products;
  const Tensor wide_a = torch::stable::to(a, type), wide_b = torch::stable::to(b, type);
  if (aoti_torch_cpu_mm_out(out.get(), wide_a.get(), wide_b.get()) != 0) throw std::runtime_error("mm.dtype_out");
  return out;
}
STABLE_TORCH_LIBRARY_IMPL(aten, CPU, m) { m.impl("mm.dtype_out", TORCH_BOX(&mm_dtype_out)); }

STABLE_TORCH_LIBRARY_IMPL(lstm_fused, CPU, m) { lstm_fused::cuda::implement_ops(m); }
