// Which kernel runs, with how many threads and blocks: one rule for the steps of both directions.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels.h"
#include "cuda/reduce.h"

namespace lstm_fused::cuda {

// f(V) with a constant V that is `width`: the most there is (kLanes, or what f has kernels for), 2 or 1.
template <int V>
struct Width {
  static constexpr int value = V;
};
template <typename T, int kMost = kLanes<T>, typename F>
cudaError_t with_width(int width, F f) {
  if (width >= kMost) return f(Width<kMost>{});
  if (kMost > 2 && width == 2) return f(Width<2>{});
  return f(Width<1>{});
}

// The same of kLanes and 1 alone, for what is rare.
template <typename T, typename F>
cudaError_t with_whole_width(int width, F f) {
  return width == kLanes<T> ? f(Width<kLanes<T>>{}) : f(Width<1>{});
}

// Threads for a row of `units`, in whole warps.
template <int V>
unsigned threads_for(int64_t units, int most) {
  const int64_t vectors = (units + V - 1) / V, warps = (vectors + kWarp - 1) / kWarp;
  return static_cast<unsigned>(warps * kWarp < most ? warps * kWarp : most);
}

// Blocks of a launch. CUDA's own type has 32 bits, into which more would be cut unnoticed.
struct Grid {
  int64_t x, y = 1;
};
constexpr int64_t kMostBlocks = 0x7fffffff, kMostBlocksY = 65535;

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), Grid grid, unsigned threads, size_t shared_bytes, cudaStream_t stream,
                   const Arguments&... arguments) {
  if (grid.x > kMostBlocks || grid.y > kMostBlocksY) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

constexpr int kPlainThreads = 128;  // a block without sums over its row
constexpr int kPlainBlocks = 8;     // of a multiprocessor: left to itself ptxas aims at 16, and spills registers for it

// The kernels of a step, of one direction:
//   plain<V>()                      without layer norm: several blocks share a row
//   layer_norm<V, kRegisters>(H)    a block a row, which sums over it; kRegisters: a thread has one vector of V units
//   project<V>()                    h_t = W_hr h'
//   kNormLanes                      the widest vectors of layer_norm with kRegisters
template <typename T, class Kernels, class Step>
cudaError_t launch_step(const Step& step, cudaStream_t stream) {
  const int64_t H = step.sizes.hidden_size, rows = step.sizes.batch;
  if (step.options.layer_norm == LayerNorm::none)
    return with_width<T>(step.width, [&](auto width) {
      constexpr int V = decltype(width)::value;
      const unsigned threads = threads_for<V>(H, kPlainThreads);
      const int64_t parts = (H + threads * V - 1) / (threads * V);
      return launch(Kernels::template plain<V>(), {rows, parts}, threads, 0, stream, step);
    });
  const auto launch_norm = [&](auto kernel, unsigned threads) {
    return launch(kernel, {rows}, threads, 6 * threads / kWarp * sizeof(Accumulator<T>), stream, step);
  };
  if (step.spill)
    return with_whole_width<T>(step.width, [&](auto width) {
      constexpr int V = decltype(width)::value;
      return launch_norm(Kernels::template layer_norm<V, false>(H), threads_for<V>(H, kThreads<T, V, false>));
    });
  return with_width<T, Kernels::kNormLanes>(step.width, [&](auto width) {
    constexpr int V = decltype(width)::value;
    return launch_norm(Kernels::template layer_norm<V, true>(H), threads_for<V>(H, kThreads<T, V>));
  });
}

template <typename T, class Kernels, class Step>
cudaError_t launch_project_step(const Step& step, cudaStream_t stream) {
  return with_width<T>(step.width, [&](auto width) {
    constexpr int V = decltype(width)::value;
    const unsigned threads = threads_for<V>(step.sizes.projection_size, kPlainThreads);
    return launch(Kernels::template project<V>(), {step.sizes.batch}, threads, 0, stream, step);
  });
}

}  // namespace lstm_fused::cuda
