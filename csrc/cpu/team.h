// Threads that work on one task together, where rows alone cannot keep them busy.
#pragma once

#include <functional>

#include "cpu/kernels.h"
#include "cpu/layer.h"

namespace lstm_fused::cpu {

// f(task, team) for all tasks in parallel, each by `members` threads: one of them, the leader, calls f, the others help
// with its parallel loops. A thread that has taken no chunk is never waited for: the leader does what a thread leaves
// undone that the operating system keeps from running.
void run_teams(const Executor& executor, int64_t tasks, int64_t members,
               const std::function<void(int64_t task, const Team&)>& f);

}  // namespace lstm_fused::cpu
