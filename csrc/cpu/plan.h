// How the rows (sequences) of a call are split into tasks, and threads assigned to them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "cpu/kernels.h"

namespace lstm_fused::cpu {

constexpr int64_t kMaxReductionBlocks = 16;     // entries of the sums over rows, and so at most that many tasks ...
constexpr int64_t kMaxReductionBlockRows = 16;  // ... until a reduction block has this many rows

constexpr int64_t kMediumWeights = int64_t{1} << 17, kLargeWeights = int64_t{1} << 19;  // bytes

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The rows by decreasing length, which of them a task takes, and how many threads work on a task together.
struct Plan {
  std::vector<int64_t> batch_index, length;  // [B]
  int64_t reduction_block_rows, reduction_blocks;
  std::vector<int64_t> task_begin;  // [tasks + 1], in rows
  int64_t members;                  // threads of a task

  // weight_bytes: what a step of the recurrence reads; max_members: how many can share it.
  Plan(const LayerSizes& sizes, const int64_t* lengths, int64_t threads, int64_t weight_bytes, int64_t max_members)
      : batch_index(sizes.batch), length(sizes.batch) {
    const int64_t B = sizes.batch;
    std::iota(batch_index.begin(), batch_index.end(), 0);
    if (lengths)
      std::stable_sort(batch_index.begin(), batch_index.end(),
                       [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
    for (int64_t r = 0; r < B; ++r) length[r] = lengths ? lengths[batch_index[r]] : sizes.steps;

    reduction_block_rows = std::max<int64_t>(1, std::min(kMaxReductionBlockRows, ceil_div(B, kMaxReductionBlocks)));
    reduction_blocks = ceil_div(B, reduction_block_rows);
    members = 1;
    max_members = std::min(max_members, threads);
    while (members < max_members && ceil_div(B, threads / members) < min_rows(weight_bytes)) ++members;
    // Tasks are runs of whole reduction blocks with nearly equal numbers of steps.
    const int64_t tasks = std::min(threads / members, reduction_blocks);
    if (members > 1) members = std::min(max_members, threads / tasks);  // the threads left over join a task
    const int64_t all_steps = std::accumulate(length.begin(), length.end(), int64_t{0});
    task_begin.push_back(0);
    int64_t done = 0;
    for (int64_t g = 0; g < reduction_blocks; ++g) {
      const int64_t end = std::min(B, (g + 1) * reduction_block_rows);
      for (int64_t r = g * reduction_block_rows; r < end; ++r) done += length[r];
      const int64_t task = static_cast<int64_t>(task_begin.size());
      if (g + 1 < reduction_blocks && task < tasks && done * tasks >= all_steps * task) task_begin.push_back(end);
    }
    task_begin.push_back(B);
  }

  // Rows that a task should have before its threads are better used for other rows. All weights are read at every step,
  // which takes as long for one row as for several, and longer if they do not fit the second-level cache. Measured on
  // two threads, training: sharing a step wins 1.3 to 1.7 times with one or two rows in all, a tenth with four of H =
  // 256 or 512, nothing with four of H = 128 or eight of any.
  static int64_t min_rows(int64_t weight_bytes) {
    return weight_bytes >= kLargeWeights ? 4 : weight_bytes >= kMediumWeights ? 2 : 1;
  }

  int64_t tasks() const { return static_cast<int64_t>(task_begin.size()) - 1; }
  int64_t rows(int64_t task) const { return task_begin[task + 1] - task_begin[task]; }
  int64_t max_steps() const { return length.empty() ? 0 : length[0]; }
  SequenceOrder order() const { return {batch_index.data(), length.data()}; }
};

}  // namespace lstm_fused::cpu
