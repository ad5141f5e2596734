// The units of a row, divided over the threads of a block: who takes which, and where a thread keeps what it made of
// them between two sums over the row.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels.h"
#include "cuda/masks.h"

#include "lstm/cell.h"
#include "lstm/layer_norm.h"

namespace lstm_fused::cuda {

// kSlots values of each of the thread's units: in its registers, or, when the row is longer than the block, in memory.
// The slot's number has to be known at compile time: registers have no address.
template <typename A, int V, int kSlots, bool kRegisters>
struct Kept {
  Lanes<A, V> values[kSlots];
  __device__ __forceinline__ Kept(A*, int64_t) {}
  __device__ __forceinline__ Lanes<A, V> get(int slot, int64_t) const { return values[slot]; }
  __device__ __forceinline__ void put(int slot, int64_t, const Lanes<A, V>& lanes) { values[slot] = lanes; }
};

template <typename A, int V, int kSlots>
struct Kept<A, V, kSlots, false> {
  A* base;         // [kSlots, stride]
  int64_t stride;  // whole vectors
  __device__ __forceinline__ Kept(A* base, int64_t stride) : base(base), stride(stride) {}
  __device__ __forceinline__ Lanes<A, V> get(int slot, int64_t j) const {
    return *reinterpret_cast<const Lanes<A, V>*>(base + slot * stride + j);
  }
  __device__ __forceinline__ void put(int slot, int64_t j, const Lanes<A, V>& lanes) {
    *reinterpret_cast<Lanes<A, V>*>(base + slot * stride + j) = lanes;
  }
};

// f(j, n) for each vector of V units of the thread: the first unit, and how many from there on there are.
template <int V, bool kOnce, typename F>
__device__ __forceinline__ void for_each_vector(int64_t units, F f) {
  int64_t j = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * V;
  if (kOnce) {
    if (j < units) f(j, units - j);
  } else {
    for (; j < units; j += static_cast<int64_t>(gridDim.y) * blockDim.x * V) f(j, units - j);
  }
}

// Threads for a row of `units`, in whole warps.
template <typename T>
unsigned threads_for(int64_t units, int most) {
  const int64_t vectors = (units + kLanes<T> - 1) / kLanes<T>, warps = (vectors + 31) / 32;
  return static_cast<unsigned>(warps * 32 < most ? warps * 32 : most);
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

// h~ = m_h h, the operand of the product with W_hh at step t of row b; zero where the state is reset before that step.
template <typename T, int V>
__device__ __forceinline__ Lanes<Accumulator<T>, V> hidden_operand(const LayerOptions& options,
                                                                   const Sequence& sequence, const int64_t* seed,
                                                                   int64_t t, int64_t b, int64_t j,
                                                                   Lanes<Accumulator<T>, V> h) {
  using A = Accumulator<T>;
  if (sequence.is_reset(t, b)) return Lanes<A, V>{};
  if (options.training && options.recurrent_dropout > 0) {
    const auto mask = dropout_mask<A, V>(seed, options.stream, MaskUse::hidden, options.recurrent_dropout, 0, b, j);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) h[lane] *= mask[lane];
  }
  return h;
}

// The weights and the mask of lstm/cell.h's CellExtras, of V units.
template <typename T, int V>
struct Extras {
  using A = Accumulator<T>;
  Lanes<A, V> weight_ci{}, weight_cf{}, weight_co{}, mask;

  // Without the mask: the caller has it.
  __device__ __forceinline__ Extras(const LayerOptions& options, const LayerInputs<T>& in, int64_t j, int64_t n,
                                    bool aligned) {
    if (options.peephole) {
      weight_ci = load<V>(in.weight_ci, j, n, aligned);
      weight_cf = load<V>(in.weight_cf, j, n, aligned);
      weight_co = load<V>(in.weight_co, j, n, aligned);
    }
  }

  __device__ __forceinline__ Extras(const LayerOptions& options, const LayerInputs<T>& in, const int64_t* seed,
                                    int64_t t, int64_t b, int64_t j, int64_t n, bool aligned)
      : Extras(options, in, j, n, aligned) {
    if (options.training && options.candidate_dropout > 0) {
      mask = dropout_mask<A, V>(seed, options.stream, MaskUse::candidate, options.candidate_dropout,
                                t + options.first_step, b, j);
    } else {
#pragma unroll
      for (int lane = 0; lane < V; ++lane) mask[lane] = 1;
    }
  }

  __device__ __forceinline__ CellExtras<A> of(const LayerOptions& options, int lane) const {
    return {options.peephole, weight_ci[lane], weight_cf[lane], weight_co[lane], mask[lane], options.open_gates};
  }
};

// The two biases of gate unit k of [4H].
template <typename T, int V>
__device__ __forceinline__ Lanes<Accumulator<T>, V> bias_of(const LayerInputs<T>& in, int64_t k, int64_t n,
                                                            bool aligned) {
  if (!in.bias_ih) return Lanes<Accumulator<T>, V>{};
  auto bias = load<V>(in.bias_ih, k, n, aligned);
  const auto other = load<V>(in.bias_hh, k, n, aligned);
#pragma unroll
  for (int lane = 0; lane < V; ++lane) bias[lane] += other[lane];
  return bias;
}

// The pre-activation of gate unit k: N(W_ih x) + N(W_hh h~) + b. stats: mean and rstd of the two; null: no layer norm.
template <typename T, int V>
__device__ __forceinline__ Lanes<Accumulator<T>, V> pre_activation(const LayerInputs<T>& in,
                                                                   const Lanes<Accumulator<T>, V>& x,
                                                                   const Lanes<Accumulator<T>, V>& h,
                                                                   const Accumulator<T>* stats, int64_t k, int64_t n,
                                                                   bool aligned) {
  auto z = bias_of<T, V>(in, k, n, aligned);
  if (!stats) {
#pragma unroll
    for (int lane = 0; lane < V; ++lane) z[lane] += x[lane] + h[lane];
    return z;
  }
  const auto gain_x = load<V>(in.weight_ln_ih, k, n, aligned);
  const auto gain_h = load<V>(in.weight_ln_hh, k, n, aligned);
#pragma unroll
  for (int lane = 0; lane < V; ++lane)
    z[lane] +=
        normalize(x[lane], stats[0], stats[1]) * gain_x[lane] + normalize(h[lane], stats[2], stats[3]) * gain_h[lane];
  return z;
}

}  // namespace lstm_fused::cuda
