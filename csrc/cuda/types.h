// Numbers on the device: what is stored, what is computed with, and how a few neighbors move between the two.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>

#include <cstdint>
#include <cstring>

namespace lstm_fused::cuda {

// Functions of both kinds of numbers; the templates of lstm/cell.h take the activations from here.
struct Math {
  static __device__ __forceinline__ float sigmoid(float x) { return 1 / (1 + expf(-x)); }
  static __device__ __forceinline__ double sigmoid(double x) { return 1 / (1 + ::exp(-x)); }
  static __device__ __forceinline__ float tanh(float x) { return tanhf(x); }
  static __device__ __forceinline__ double tanh(double x) { return ::tanh(x); }
  static __device__ __forceinline__ float sqrt(float x) { return sqrtf(x); }
  static __device__ __forceinline__ double sqrt(double x) { return ::sqrt(x); }
};

// Arithmetic, statistics and the cell state: float32, or float64 where the tensors are.
template <typename T>
struct AccumulatorOf {
  using Type = float;
};
template <>
struct AccumulatorOf<double> {
  using Type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::Type;

// Neighboring units that one thread takes, at most: 128 bits of float32 or float64. Half types move 64 bits: a step is
// bound by its latency, which grows with the units a thread computes one after the other, and one Philox draw serves
// four. Rows whose length or place allows no such vectors are moved in smaller ones, see with_width in units.h.
template <typename T>
constexpr int kLanes = sizeof(T) == 8 ? 2 : 4;

template <typename A, int V>
struct alignas(sizeof(A) * V) Lanes {
  A value[V];
  __device__ __forceinline__ A& operator[](int lane) { return value[lane]; }
  __device__ __forceinline__ A operator[](int lane) const { return value[lane]; }
};

// V numbers as they lie in memory. A load gives these: what widens them waits for the load, so that it is done where
// the numbers are needed, and all loads before it overlap.
template <typename T, int V, bool kPairs = sizeof(T) == 2 && V % 2 == 0>
struct alignas(sizeof(T) * V) Packed {
  T value[V];
  __device__ __forceinline__ T operator[](int lane) const { return value[lane]; }
};

// Half types by pairs: by themselves each would be put into a register of its own at once, which waits too.
template <typename T, int V>
struct alignas(sizeof(T) * V) Packed<T, V, true> {
  uint32_t words[V / 2];
  __device__ __forceinline__ T operator[](int lane) const {
    const auto bits = static_cast<uint16_t>(lane % 2 ? words[lane / 2] >> 16 : words[lane / 2]);
    T number;
    memcpy(&number, &bits, sizeof number);
    return number;
  }
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T, int V>
__device__ __forceinline__ Lanes<Accumulator<T>, V> widen(const Packed<T, V>& packed) {
  Lanes<Accumulator<T>, V> lanes;
#pragma unroll
  for (int lane = 0; lane < V; ++lane) lanes[lane] = widen(packed[lane]);
  return lanes;
}

template <typename T>
struct Narrow {
  static __device__ __forceinline__ T from(Accumulator<T> x) { return x; }
};
template <>
struct Narrow<__half> {
  static __device__ __forceinline__ __half from(float x) { return __float2half_rn(x); }
};
template <>
struct Narrow<__nv_bfloat16> {
  static __device__ __forceinline__ __nv_bfloat16 from(float x) { return __float2bfloat16_rn(x); }
};

// x[j .. j + V), which lies at a multiple of its own size.
template <int V, typename T>
__device__ __forceinline__ Packed<T, V> load(const T* x, int64_t j) {
  return *reinterpret_cast<const Packed<T, V>*>(x + j);
}

template <int V, typename T>
__device__ __forceinline__ void store(T* x, int64_t j, const Lanes<Accumulator<T>, V>& lanes) {
  Packed<T, V, false> packed;
#pragma unroll
  for (int lane = 0; lane < V; ++lane) packed.value[lane] = Narrow<T>::from(lanes[lane]);
  *reinterpret_cast<Packed<T, V, false>*>(x + j) = packed;
}

}  // namespace lstm_fused::cuda
