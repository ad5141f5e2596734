// The units of a row, divided over the threads of a block: what a thread reads of its units, and where it keeps what it
// made of them between two sums over the row.
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

// f(j) for each vector of V units of the thread, from unit j on; V divides `units`.
template <int V, bool kOnce, typename F>
__device__ __forceinline__ void for_each_vector(int64_t units, F f) {
  int64_t j = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * V;
  if (kOnce) {
    if (j < units) f(j);
  } else {
    for (; j < units; j += static_cast<int64_t>(gridDim.y) * blockDim.x * V) f(j);
  }
}

// The seed of the masks, which the host has not read.
__device__ __forceinline__ uint64_t read_seed(const int64_t* seed) { return seed ? static_cast<uint64_t>(*seed) : 0; }

// h~ = m_h h, the operand of the product with W_hh at step t of row b; zero where the state is reset before that step.
template <typename A, int V>
__device__ __forceinline__ Lanes<A, V> hidden_operand(const StepOptions<A>& options, const Sequence& sequence,
                                                      uint64_t seed, int64_t t, int64_t b, int64_t j, Lanes<A, V> h) {
  if (sequence.is_reset(t, b)) return Lanes<A, V>{};
  if (options.hidden.on) {
    const auto mask = dropout_mask<A, V>(seed, options.stream, MaskUse::hidden, options.hidden, 0, b, j);
#pragma unroll
    for (int lane = 0; lane < V; ++lane) h[lane] *= mask[lane];
  }
  return h;
}

// The products W_ih x and W_hh h~ of the four gates of V units.
template <typename T, int V>
struct Products {
  Packed<T, V> x[4], h[4];

  __device__ __forceinline__ Products() {}
  // gates, recurrent: those of the row.
  __device__ __forceinline__ Products(const T* gates, const T* recurrent, int64_t H, int64_t j) {
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      x[gate] = load<V>(gates, gate * H + j);
      h[gate] = load<V>(recurrent, gate * H + j);
    }
  }
};

// The peepholes of V units.
template <typename T, int V>
struct Peepholes {
  Packed<T, V> ci{}, cf{}, co{};

  __device__ __forceinline__ Peepholes() {}
  __device__ __forceinline__ Peepholes(const LayerInputs<T>& in, bool given, int64_t j) {
    if (!given) return;
    ci = load<V>(in.weight_ci, j);
    cf = load<V>(in.weight_cf, j);
    co = load<V>(in.weight_co, j);
  }
};

// What lstm/cell.h's CellOptions has of V units.
template <typename T, int V>
struct UnitOptions {
  using A = Accumulator<T>;
  Lanes<A, V> weight_ci, weight_cf, weight_co, mask;

  __device__ __forceinline__ UnitOptions(const Peepholes<T, V>& peepholes, const Lanes<A, V>& mask)
      : weight_ci(widen(peepholes.ci)), weight_cf(widen(peepholes.cf)), weight_co(widen(peepholes.co)), mask(mask) {}

  __device__ __forceinline__ CellOptions<A> of(const StepOptions<A>& options, int lane) const {
    return {options.choices, options.peephole, weight_ci[lane], weight_cf[lane], weight_co[lane], mask[lane]};
  }
};

// The mask of the candidates; 1 without one.
template <typename A, int V>
__device__ __forceinline__ Lanes<A, V> candidate_mask(const StepOptions<A>& options, uint64_t seed, int64_t t,
                                                      int64_t b, int64_t j) {
  if (options.candidate.on)
    return dropout_mask<A, V>(seed, options.stream, MaskUse::candidate, options.candidate, t + options.first_step, b,
                              j);
  Lanes<A, V> mask;
#pragma unroll
  for (int lane = 0; lane < V; ++lane) mask[lane] = 1;
  return mask;
}

// What the four gates of V units take besides the products: the sum of the two biases and, with layer norm, the gains.
template <typename T, int V>
struct GateParameters {
  using A = Accumulator<T>;
  Lanes<A, V> bias[4];
  Packed<T, V> gain_x[4], gain_h[4];

  __device__ __forceinline__ GateParameters() {}

  template <bool kNorm>
  __device__ __forceinline__ static GateParameters of(const LayerInputs<T>& in, int64_t H, int64_t j) {
    GateParameters parameters;
    Packed<T, V> bias_ih[4] = {}, bias_hh[4] = {};
    if (in.bias_ih) {
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) {
        bias_ih[gate] = load<V>(in.bias_ih, gate * H + j);
        bias_hh[gate] = load<V>(in.bias_hh, gate * H + j);
      }
    }
    if (kNorm) parameters.load_gains(in, H, j);
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      const auto ih = widen(bias_ih[gate]), hh = widen(bias_hh[gate]);
#pragma unroll
      for (int lane = 0; lane < V; ++lane) parameters.bias[gate][lane] = ih[lane] + hh[lane];
    }
    return parameters;
  }

  __device__ __forceinline__ void load_gains(const LayerInputs<T>& in, int64_t H, int64_t j) {
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      gain_x[gate] = load<V>(in.weight_ln_ih, gate * H + j);
      gain_h[gate] = load<V>(in.weight_ln_hh, gate * H + j);
    }
  }

  // The pre-activations of a gate: W_ih x + W_hh h~ + b.
  __device__ __forceinline__ Lanes<A, V> plain(int gate, const Lanes<A, V>& x, const Lanes<A, V>& h) const {
    Lanes<A, V> z = bias[gate];
#pragma unroll
    for (int lane = 0; lane < V; ++lane) z[lane] += x[lane] + h[lane];
    return z;
  }

  // N(W_ih x) + N(W_hh h~) + b. stats: mean and rstd of the two.
  __device__ __forceinline__ Lanes<A, V> normalized(int gate, const Lanes<A, V>& x, const Lanes<A, V>& h,
                                                    const A* stats) const {
    Lanes<A, V> z = bias[gate];
    const auto of_x = widen(gain_x[gate]), of_h = widen(gain_h[gate]);
#pragma unroll
    for (int lane = 0; lane < V; ++lane)
      z[lane] +=
          normalize(x[lane], stats[0], stats[1]) * of_x[lane] + normalize(h[lane], stats[2], stats[3]) * of_h[lane];
    return z;
  }
};

}  // namespace lstm_fused::cuda
