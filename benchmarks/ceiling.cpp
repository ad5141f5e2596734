// What the matrix products of one core are held against, in GFLOP/s of float32.
#define LSTM_FUSED_ISA_NAME native
#include <chrono>
#include <cstdlib>

#include "cpu/gemm.h"

using namespace lstm_fused::cpu::native;

namespace {

template <class F>
double best_gflops(double flops, F run) {
  double best = 1e30;
  for (int repeat = 0; repeat < 40; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    if (seconds.count() < best) best = seconds.count();
  }
  return flops / best / 1e9;
}

float random_value() { return static_cast<float>(std::rand()) / RAND_MAX - 0.5f; }

}  // namespace

// Multiply-adds in registers and nothing else, in as many independent chains as a register tile has. Nothing is faster.
extern "C" __attribute__((visibility("default"))) double peak_gflops() {
  constexpr int kChains = kTileRows * kTileVectors, kSteps = 100000;
  Vec<float> acc[kChains], factor = broadcast(random_value()), summand = broadcast(random_value());
  for (Vec<float>& v : acc) v = broadcast(random_value());
  const double gflops = best_gflops(2.0 * kSteps * kChains * kLanes<float>, [&]() {
    for (int step = 0; step < kSteps; ++step)
#pragma GCC unroll 24
      for (int chain = 0; chain < kChains; ++chain) acc[chain] = acc[chain] * factor + summand;
  });
  Vec<float> sum{};
  for (const Vec<float>& v : acc) sum += v;
  static volatile float used;
  used = sum_lanes<float>(sum);  // or nothing would be computed
  return gflops;
}

// The register tile of the kernels on operands that stay in the second-level cache, with nothing else to do.
extern "C" __attribute__((visibility("default"))) double tile_gflops() {
  constexpr int64_t kRows = 8 * kTileRows, kDepth = 256, kColumns = 8 * kPanelColumns<float>;
  constexpr int64_t kPanel = kDepth * kPanelColumns<float>;
  static float a[kRows * kDepth], panels[kDepth * kColumns], out[kRows * kColumns],
      sums[kRowBlock * kPanelColumns<float>];
  for (float& v : a) v = random_value();
  for (float& v : panels) v = random_value();
  const float* rows[kRows];
  float* outs[kRows];
  for (int64_t r = 0; r < kRows; ++r) rows[r] = a + r * kDepth, outs[r] = out + r * kColumns;
  return best_gflops(8 * 2.0 * kRows * kDepth * kColumns, [&]() {
    for (int call = 0; call < 8; ++call)
      gemm_rows<float>(lstm_fused::cpu::kAlone, false, kRows, rows, kDepth, panels, kPanel, 0, PlainColumns{kColumns},
                       nullptr, outs, sums);
  });
}
