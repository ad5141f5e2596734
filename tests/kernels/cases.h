// What the tests of the kernels share: cases with names, and threads to run tasks on.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cpu/layer.h"

struct Case {
  std::string name;
  std::function<void()> run;
};

// Counts a check of the case that runs, and says what failed.
void check(bool ok, const std::string& what);

// So many threads, one task each.
lstm_fused::cpu::Executor executor(int64_t threads);

std::vector<Case> team_cases();
