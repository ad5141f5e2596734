#include "cpu/team.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <thread>
#include <vector>

namespace lstm_fused::cpu {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kSpins = 200;  // some microseconds, after which others may have the core
// Longer than this, and than its own share of the job took, a leader waits only for a helper that has lost its core to
// another process, and will again: it gives its helpers up for the rest of the task.
constexpr Clock::duration kLongWait = std::chrono::microseconds(500);

// What a thread does each time it finds nothing to do.
class Spin {
 public:
  void operator()() {
    if (++spins_ > kSpins) {
      if (spins_ == kSpins + 1) start_ = Clock::now();
      return std::this_thread::yield();
    }
#if defined(__SSE2__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  // Longer than kLongWait, and than there had been work since `begin`.
  bool waited_long(Clock::time_point begin) const {
    return spins_ > kSpins && Clock::now() - start_ > std::max<Clock::duration>(kLongWait, start_ - begin);
  }
  void reset() { spins_ = 0; }

 private:
  int64_t spins_ = 0;
  Clock::time_point start_;
};

// One job after the other: [0, count) is cut into one range a member, so that each sees the same panels at every step
// and keeps them in its cache. A member takes index after index of its own range, then of the others'.
class Work {
 public:
  explicit Work(int64_t members) : ranges_(members) {}

  // The first thread to come leads; there may be no second.
  void join(int64_t member, const std::function<void(const Team&)>& f) {
    if (led_.exchange(true)) return help(member);
    leader_ = member;
    struct Dismissal {
      Work& work;
      ~Dismissal() { work.dismiss(); }
    } dismissal{*this};
    f({members(), this, [](void* work, int64_t count, bool reverse, Team::Body body, const void* closure) {
         static_cast<Work*>(work)->parallel_for(count, reverse, body, closure);
       }});
  }

 private:
  static constexpr uint64_t kNoMore = ~uint64_t{0};
  // The number of a job with how many indices it has, and with how many of a range are taken in it, each in one word:
  // a thread that comes late with an older job knows the size of that one, and sees that the range has nothing left of
  // it.
  static constexpr int kIndexBits = 32;
  static int64_t indices(uint64_t word) { return static_cast<uint32_t>(word); }
  struct alignas(64) Range {
    std::atomic<uint64_t> taken{0};
  };

  int64_t members() const { return static_cast<int64_t>(ranges_.size()); }

  void parallel_for(int64_t count, bool reverse, Team::Body body, const void* closure) {
    if (dismissed_) return body(closure, leader_, 0, count);
    reverse_.store(reverse, std::memory_order_relaxed);
    body_.store(body, std::memory_order_relaxed);
    closure_.store(closure, std::memory_order_relaxed);
    helped_.store(0, std::memory_order_relaxed);
    const uint64_t number = (job_.load(std::memory_order_relaxed) >> kIndexBits) + 1;
    const uint64_t job = (number << kIndexBits) + count;
    job_.store(job, std::memory_order_release);
    const Clock::time_point begin = Clock::now();
    const int64_t done = take_chunks(leader_, job);
    Spin spin;
    while (done + helped_.load(std::memory_order_acquire) < count) spin();
    if (spin.waited_long(begin)) dismiss();
  }

  void dismiss() {
    dismissed_ = true;
    job_.store(kNoMore, std::memory_order_release);
  }

  void help(int64_t member) {
    uint64_t last = 0;
    for (Spin spin;;) {
      const uint64_t job = job_.load(std::memory_order_acquire);
      if (job == kNoMore) return;
      if (job == last) {
        spin();
        continue;
      }
      if (const int64_t done = take_chunks(member, job)) helped_.fetch_add(done, std::memory_order_release);
      last = job;
      spin.reset();
    }
  }

  // How many. The job may be over before it begins here, and the closure that of a later one; then nothing is taken.
  int64_t take_chunks(int64_t member, uint64_t job) {
    const uint64_t number = job >> kIndexBits;
    const int64_t count = indices(job);
    const bool reverse = reverse_.load(std::memory_order_relaxed);
    const Team::Body body = body_.load(std::memory_order_relaxed);
    const void* const closure = closure_.load(std::memory_order_relaxed);
    int64_t done = 0;
    for (int64_t k = 0; k < members(); ++k) {
      const int64_t owner = (member + k) % members();
      const int64_t begin = count * owner / members(), end = count * (owner + 1) / members();
      for (int64_t index; (index = take(ranges_[owner], number, end - begin)) >= 0; ++done) {
        const int64_t p = reverse ? end - 1 - index : begin + index;
        body(closure, member, p, p + 1);
      }
    }
    return done;
  }

  // The next index of a range of `size`, or -1. A range that the job has not touched still holds an older job.
  static int64_t take(Range& range, uint64_t number, int64_t size) {
    uint64_t word = range.taken.load(std::memory_order_relaxed);
    for (;;) {
      const uint64_t of_job = word >> kIndexBits;
      const int64_t index = of_job == number ? indices(word) : 0;
      if (of_job > number || index >= size) return -1;
      if (range.taken.compare_exchange_weak(word, (number << kIndexBits) + index + 1, std::memory_order_relaxed))
        return index;
    }
  }

  std::vector<Range> ranges_;  // [members]
  std::atomic<bool> led_{false};
  int64_t leader_ = 0;
  bool dismissed_ = false;
  // What helpers read of a job, in one cache line, and what they write in another.
  alignas(64) std::atomic<uint64_t> job_{0};
  std::atomic<bool> reverse_{false};
  std::atomic<Team::Body> body_{nullptr};
  std::atomic<const void*> closure_{nullptr};
  alignas(64) std::atomic<int64_t> helped_{0};  // indices done by others than the leader
};

}  // namespace

void run_teams(const Executor& executor, int64_t tasks, int64_t members,
               const std::function<void(int64_t, const Team&)>& f) {
  if (members == 1) return executor.run(tasks, [&](int64_t task) { f(task, kAlone); });
  std::deque<Work> work;  // which cannot be moved
  for (int64_t task = 0; task < tasks; ++task) work.emplace_back(members);
  executor.run(tasks * members, [&](int64_t thread) {
    const int64_t task = thread / members;
    work[task].join(thread % members, [&](const Team& team) { f(task, team); });
  });
}

}  // namespace lstm_fused::cpu
