// Sums over the threads of a block: the same bits in every thread, and in every run.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lstm_fused::cuda {

constexpr int kWarp = 32;

// values[k] = the sum of values[k] over the block: in a warp by shuffles, then over the warps in their order.
// `shared` is [warps, kValues] and belongs to this one sum: nothing else is written there before the kernel ends, so
// that one barrier is enough.
template <int kValues, typename A>
__device__ __forceinline__ void block_sum(A (&values)[kValues], A* shared) {
#pragma unroll
  for (int k = 0; k < kValues; ++k)
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
      values[k] += __shfl_xor_sync(0xffffffffu, values[k], distance);
  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  if (threadIdx.x % kWarp == 0)
#pragma unroll
    for (int k = 0; k < kValues; ++k) shared[warp * kValues + k] = values[k];
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kValues; ++k) {
    values[k] = shared[k];
    for (int other = 1; other < warps; ++other) values[k] += shared[other * kValues + k];
  }
}

// The dynamic shared memory of the launch.
template <typename A>
__device__ __forceinline__ A* shared_memory() {
  extern __shared__ __align__(16) unsigned char lstm_fused_shared_memory[];
  return reinterpret_cast<A*>(lstm_fused_shared_memory);
}

}  // namespace lstm_fused::cuda
