// Matrix products of torch's, and the views of tensors that they take.
#pragma once

#include <dlfcn.h>

#include <array>

#include "cuda/layer.h"

namespace lstm_fused::cuda {

// The matrix of these sizes and strides in a tensor, from element `first` on. No dispatcher: a step takes microseconds.
inline Tensor view_of(const Tensor& tensor, std::array<int64_t, 2> sizes, std::array<int64_t, 2> strides,
                      int64_t first) {
  AtenTensorHandle view = nullptr;
  if (aoti_torch__reinterpret_tensor(tensor.get(), 2, sizes.data(), strides.data(), first, &view) != 0)
    fail("torch could not make a view of a tensor", reason_of_torch());
  return Tensor(view);
}

// Rows [first, first + rows) of a contiguous tensor that is seen as a matrix.
inline Tensor rows_of(const Tensor& tensor, int64_t first, int64_t rows, int64_t columns) {
  return view_of(tensor, {rows, columns}, {columns, 1}, first * columns);
}

// Its transpose, [columns, rows].
inline Tensor transposed(const Tensor& tensor, int64_t rows, int64_t columns) {
  return view_of(tensor, {columns, rows}, {1, columns}, 0);
}

// aten::mm.out of CUDA as a C function. A call by the dispatcher, which looks for the operator by its name and packs
// its arguments, takes a microsecond more, at every step. torch promises nothing about this function: where it has
// none, the dispatcher does it.
using MmOut = AOTITorchError (*)(AtenTensorHandle out, AtenTensorHandle a, AtenTensorHandle b);
inline MmOut mm_out() {
  static const auto found = reinterpret_cast<MmOut>(dlsym(RTLD_DEFAULT, "aoti_torch_cuda_mm_out"));
  return by_dispatcher ? nullptr : found;
}

[[noreturn]] inline void fail_to_multiply() { fail("torch could not multiply two matrices", reason_of_torch()); }

// out = a b, on torch's current stream.
inline void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
  if (const MmOut direct = mm_out()) {
    if (direct(out.get(), a.get(), b.get()) != 0) fail_to_multiply();
    return;
  }
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out)};
  if (torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION) != 0) fail_to_multiply();
  torch::stable::detail::to<Tensor>(stack[0]);  // takes back the reference to `out`
}

// out = a b, in float32 of what is in half precision: cuBLAS may otherwise add parts of long sums in half precision.
inline void multiply_in(ScalarType accumulator, const Tensor& out, const Tensor& a, const Tensor& b) {
  if (a.scalar_type() == accumulator) return multiply(out, a, b);
  std::array<StableIValue, 4> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(accumulator), torch::stable::detail::from(out)};
  if (torch_call_dispatcher("aten::mm", "dtype_out", stack.data(), TORCH_ABI_VERSION) != 0) fail_to_multiply();
  torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace lstm_fused::cuda
