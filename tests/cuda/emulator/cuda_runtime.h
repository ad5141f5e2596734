// Runs CUDA kernels on the CPU: found in the place of CUDA's own header by the compiler of the tests, it lets the .cu
// sources of csrc/cuda be compiled as C++, unchanged, and their kernels be run where there is neither a GPU nor CUDA.
//
// A block's threads are fibers, run one at a time until each has to wait for others (a barrier, a shuffle, a ballot).
// What would go unnoticed on a lucky GPU is made to show:
//   - shared memory starts as NaN, and under the address sanitizer ends where the launch said it would;
//   - the schedule is shuffled by a seed: one warp runs ahead as far as it can while the others have not begun, the
//     lanes of a warp go in any order, and so do the blocks;
//   - threads that wait for a barrier that the others never reach are an error, not a hang, and so is a shuffle that a
//     lane is missing from.
// Blocks run one after the other: kernels that wait for other blocks need more than this.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__  // "extern __shared__" is then an array defined in emulator.cpp

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;  // of the fiber that runs
using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchFailure = 719 };
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess                     ? "no error"
         : error == cudaErrorInvalidConfiguration ? "invalid configuration argument"
                                                  : "unspecified launch failure";
}

namespace emulator {

constexpr unsigned kWarp = 32, kMostThreads = 1024;
constexpr size_t kStack = 128 << 10, kMostShared = 48 << 10;

extern unsigned char* const shared_memory;  // kMostShared bytes
extern uint32_t seed;                       // of the schedule; 0: in order
extern int64_t launches;                    // since the library was loaded

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "CUDA emulator: %s\n", what);
  std::abort();
}

struct Barrier {
  unsigned arrived = 0, generation = 0;
};

struct Fiber {
  void* stack = nullptr;
  void* position = nullptr;  // where it goes on
  dim3 thread;
  unsigned lane = 0, warp = 0;
  bool done = false;
  bool waits = false;  // for `barrier` to get past `generation`
  const Barrier* barrier = nullptr;
  unsigned generation = 0;
};

struct Warp {
  Barrier barrier;
  unsigned alive = 0;  // lanes that have not returned
  alignas(16) unsigned char slots[kWarp][16];
};

struct Block {
  unsigned threads = 0;
  Barrier barrier;
  unsigned alive = 0;
  std::vector<Warp> warps;
  std::vector<Fiber> fibers;
  std::function<void()> kernel;
  void* scheduler = nullptr;
};

extern Block* block;  // the one that runs
extern Fiber* fiber;

void yield();  // from a fiber to the scheduler
void run_block(std::mt19937& random);
std::vector<Block>& pool();  // one block, whose stacks are kept from launch to launch

// Until `wanted` threads have come.
inline void wait(Barrier& barrier, unsigned wanted) {
  if (++barrier.arrived == wanted) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  fiber->barrier = &barrier;
  fiber->generation = barrier.generation;
  fiber->waits = true;
  yield();
  fiber->waits = false;
}

inline Warp& warp() { return block->warps[fiber->warp]; }

inline void warp_barrier(unsigned mask) {
  const unsigned lanes = std::min(kWarp, block->threads - fiber->warp * kWarp);
  if (mask != (lanes == kWarp ? ~0u : (1u << lanes) - 1)) fail("a warp's mask does not name all of its lanes");
  wait(warp().barrier, lanes);
}

// What lane `source` has in `value`.
template <class V>
V from_lane(unsigned mask, V value, unsigned source) {
  static_assert(sizeof(V) <= 16);
  std::memcpy(warp().slots[fiber->lane], &value, sizeof value);
  warp_barrier(mask);
  V result;
  std::memcpy(&result, warp().slots[source % kWarp], sizeof result);
  warp_barrier(mask);  // before the slots are written again
  return result;
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::block->barrier, emulator::block->threads); }
inline void __syncwarp(unsigned mask = ~0u) { emulator::warp_barrier(mask); }
template <class V>
V __shfl_sync(unsigned mask, V value, int lane) {
  return emulator::from_lane(mask, value, static_cast<unsigned>(lane));
}
template <class V>
V __shfl_xor_sync(unsigned mask, V value, int lanes) {
  return emulator::from_lane(mask, value, emulator::fiber->lane ^ static_cast<unsigned>(lanes));
}
template <class V>
V __shfl_down_sync(unsigned mask, V value, unsigned lanes) {
  const unsigned lane = emulator::fiber->lane;
  return emulator::from_lane(mask, value, lane + lanes < emulator::kWarp ? lane + lanes : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < emulator::kWarp; ++lane)
    ballot |= static_cast<unsigned>(emulator::from_lane(mask, predicate != 0, lane)) << lane;
  return ballot;
}

// Launches, through the function of CUDA's that takes a kernel and its arguments.
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  using namespace emulator;
  const dim3 grid = config->gridDim, size = config->blockDim;
  const uint64_t threads = uint64_t{size.x} * size.y * size.z, blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (threads == 0 || threads > kMostThreads || blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
      grid.z > 65535 || config->dynamicSmemBytes > kMostShared)
    return cudaErrorInvalidConfiguration;
  ++launches;
  Block& own = pool().front();
  gridDim = grid;
  blockDim = size;
  own.threads = static_cast<unsigned>(threads);
  own.kernel = [&] { kernel(arguments...); };
  std::mt19937 random(seed);
  std::vector<uint64_t> order(blocks);
  for (uint64_t k = 0; k < blocks; ++k) order[k] = k;
  if (seed) std::shuffle(order.begin(), order.end(), random);
  for (const uint64_t k : order) {
    blockIdx = dim3(static_cast<unsigned>(k % grid.x), static_cast<unsigned>(k / grid.x % grid.y),
                    static_cast<unsigned>(k / grid.x / grid.y));
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(shared_memory, config->dynamicSmemBytes);
    __asan_poison_memory_region(shared_memory + config->dynamicSmemBytes, kMostShared - config->dynamicSmemBytes);
#endif
    std::memset(shared_memory, 0xff, config->dynamicSmemBytes);
    run_block(random);
  }
  return cudaSuccess;
}
