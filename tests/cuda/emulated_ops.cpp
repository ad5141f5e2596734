// The CUDA backend on the CPU: every op of csrc/cuda registered for CPU tensors, in the place of the CPU's own kernels.
// The matrix products are torch's, as on the GPU; the kernels run in the emulator.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

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

// For Python, through ctypes.
__attribute__((visibility("default"))) void lstm_fused_emulator_seed(uint32_t seed) { emulator::seed = seed; }
__attribute__((visibility("default"))) void lstm_fused_emulator_chunk(int64_t values) {
  lstm_fused::cuda::chunk_values = values;
}
__attribute__((visibility("default"))) int64_t lstm_fused_emulator_launches() { return emulator::launches; }
}

STABLE_TORCH_LIBRARY_IMPL(lstm_fused, CPU, m) { lstm_fused::cuda::implement_ops(m); }
