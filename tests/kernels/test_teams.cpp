// Threads that work on one task: each iteration of a leader's loop is done once, in whatever order they come.
#include <atomic>
#include <chrono>
#include <thread>

#include "cases.h"
#include "cpu/team.h"

using namespace lstm_fused;

namespace {

// Each iteration of a leader's loop is done once, and before it goes on; helpers come, go and are slow at any time.
void check_teams() {
  constexpr int64_t kTasks = 2, kMembers = 4, kJobs = 4000, kMax = 9;
  struct Job {
    int64_t number, visits[kMax];
    std::thread::id leader;
  };
  bool once[kTasks] = {true, true};
  const auto lead = [&](int64_t task, const cpu::Team& team) {
    const auto body = [](const void* closure, int64_t member, int64_t first, int64_t last) {
      Job& job = *static_cast<Job*>(const_cast<void*>(closure));
      for (int64_t k = first; k < last; ++k) {
        if ((job.number + k + member) % 4 == 0) std::this_thread::yield();
        // Helpers come, and then are so slow that the leader gives them up.
        if (job.number == kJobs - 99)
          std::this_thread::sleep_for(std::chrono::milliseconds(std::this_thread::get_id() == job.leader ? 1 : 20));
        ++job.visits[k];
      }
    };
    Job jobs[2];  // so that work on the job before is seen
    for (int64_t number = 0; number < kJobs; ++number) {
      Job& job = jobs[number % 2];
      job = {number, {}, std::this_thread::get_id()};
      const int64_t count = (number * 7 + task) % (kMax + 1);
      team.parallel_for(team.work, count, number / 2 % 2, body, &job);
      for (int64_t k = 0; k < kMax; ++k) once[task] &= job.visits[k] == (k < count);
    }
  };
  cpu::run_teams(executor(kTasks * kMembers), kTasks, kMembers, lead);
  for (int64_t task = 0; task < kTasks; ++task)
    check(once[task], "each iteration of a leader's loop is done, and once");
}

// Jobs of one index and of several in turn: a helper that is late for one takes nothing of the next.
void check_late_helpers() {
  constexpr int64_t kMembers = 4, kJobs = 20000, kMax = 8, kRuns = 40;
  int64_t wrong = 0;
  const auto lead = [&](int64_t, const cpu::Team& team) {
    std::atomic<int64_t> visits[kMax];
    const auto body = [](const void* closure, int64_t, int64_t first, int64_t last) {
      const auto counts = static_cast<std::atomic<int64_t>*>(const_cast<void*>(closure));
      for (int64_t k = first; k < last; ++k) ++counts[k];
    };
    for (int64_t number = 0; number < kJobs; ++number) {
      const int64_t count = number % 4 ? 1 : kMax;
      for (std::atomic<int64_t>& visited : visits) visited = 0;
      team.parallel_for(team.work, count, false, body, visits);
      for (int64_t k = 0; k < kMax; ++k) wrong += visits[k] != (k < count);
    }
  };
  for (int64_t run = 0; run < kRuns; ++run) cpu::run_teams(executor(kMembers), 1, kMembers, lead);
  check(wrong == 0, "each iteration is done once, whatever the loop before was");
}

}  // namespace

std::vector<Case> team_cases() { return {{"teams", check_teams}, {"late helpers", check_late_helpers}}; }
