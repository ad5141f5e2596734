// How the rows (sequences) of a call are split into tasks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "cpu/kernels.h"

namespace lstm_fused::cpu {

constexpr int64_t kMaxGranules = 16;     // entries of the sums over rows, and so at most that many tasks ...
constexpr int64_t kMaxGranuleRows = 16;  // ... until a granule has this many rows

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The rows by decreasing length, and which of them a task takes.
struct Plan {
  std::vector<int64_t> row, steps;  // [B]
  int64_t granule_rows, granules;
  std::vector<int64_t> task_begin;  // [tasks + 1], in rows

  Plan(const LayerSizes& sizes, const int64_t* lengths, int64_t threads) : row(sizes.batch), steps(sizes.batch) {
    const int64_t B = sizes.batch;
    std::iota(row.begin(), row.end(), 0);
    if (lengths)
      std::stable_sort(row.begin(), row.end(), [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
    for (int64_t r = 0; r < B; ++r) steps[r] = lengths ? lengths[row[r]] : sizes.steps;

    granule_rows = std::max<int64_t>(1, std::min(kMaxGranuleRows, ceil_div(B, kMaxGranules)));
    granules = ceil_div(B, granule_rows);
    // Tasks are runs of whole granules with nearly equal numbers of steps.
    const int64_t tasks = std::min(threads, granules);
    const int64_t all_steps = std::accumulate(steps.begin(), steps.end(), int64_t{0});
    task_begin.push_back(0);
    int64_t done = 0;
    for (int64_t g = 0; g < granules; ++g) {
      const int64_t end = std::min(B, (g + 1) * granule_rows);
      for (int64_t r = g * granule_rows; r < end; ++r) done += steps[r];
      const int64_t task = static_cast<int64_t>(task_begin.size());
      if (g + 1 < granules && task < tasks && done * tasks >= all_steps * task) task_begin.push_back(end);
    }
    task_begin.push_back(B);
  }

  int64_t tasks() const { return static_cast<int64_t>(task_begin.size()) - 1; }
  int64_t rows(int64_t task) const { return task_begin[task + 1] - task_begin[task]; }
  int64_t max_steps() const { return steps.empty() ? 0 : steps[0]; }
  Schedule schedule() const { return {row.data(), steps.data()}; }
};

}  // namespace lstm_fused::cpu
