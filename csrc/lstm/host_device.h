// One macro so that the mathematics is written once and compiled for the host and for the device.
#pragma once

#if defined(__CUDACC__)
#define LSTM_FUSED_FN static __host__ __device__ __forceinline__
#else
// Internal linkage: the same header is compiled once per instruction set, and the linker must not merge those copies.
#define LSTM_FUSED_FN static inline __attribute__((always_inline))
#endif
