// The matrix ceiling of one core: the register tile of csrc/cpu/gemm.h on operands that stay in the second-level cache,
// with nothing else to do. Any product inside an LSTM is at best as fast.
#define LSTM_FUSED_ISA_NAME native
#include <chrono>
#include <cstdlib>

#include "cpu/gemm.h"

using namespace lstm_fused::cpu::native;

extern "C" double ceiling_gflops() {
  constexpr int64_t kRows = 8 * kTileRows, kDepth = 256, kColumns = 8 * kPanelColumns<float>;
  constexpr int64_t kPanel = kDepth * kPanelColumns<float>;
  static float a[kRows * kDepth], panels[kDepth * kColumns], out[kRows * kColumns];
  for (float& v : a) v = static_cast<float>(std::rand()) / RAND_MAX - 0.5f;
  for (float& v : panels) v = static_cast<float>(std::rand()) / RAND_MAX - 0.5f;
  const float* rows[kRows];
  float* outs[kRows];
  for (int64_t r = 0; r < kRows; ++r) rows[r] = a + r * kDepth, outs[r] = out + r * kColumns;
  double best = 1e30;
  for (int repeat = 0; repeat < 40; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    for (int call = 0; call < 8; ++call)
      gemm_rows<float>(lstm_fused::cpu::kAlone, false, kRows, rows, kDepth, panels, kPanel, PlainColumns{kColumns},
                       nullptr, outs);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    if (seconds.count() < best) best = seconds.count();
  }
  return 8 * 2.0 * kRows * kDepth * kColumns / best / 1e9;
}
