// The fibers of the CUDA emulator, and what it keeps. See cuda_runtime.h.
#include "cuda_runtime.h"

#include <sys/mman.h>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

// Kernels name this array in their own namespace.
namespace lstm_fused::cuda {
alignas(16) unsigned char lstm_fused_shared_memory[emulator::kMostShared];
}

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

unsigned char* const shared_memory = lstm_fused::cuda::lstm_fused_shared_memory;
uint32_t seed = 0;
int64_t launches = 0;
Block* block = nullptr;
Fiber* fiber = nullptr;

std::vector<Block>& pool() {
  static std::vector<Block> blocks(1);
  return blocks;
}

namespace {

// --- changing stacks. swapcontext() would do, at the price of a system call each time.

#if defined(__x86_64__)

extern "C" void lstm_fused_emulator_switch(void** from, void* to);
asm(R"(
.text
.type lstm_fused_emulator_switch, @function
lstm_fused_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

void change(void** from, void* to) { lstm_fused_emulator_switch(from, to); }

void prepare(Fiber& of, void (*entry)()) {
  auto* top = reinterpret_cast<void**>(static_cast<char*>(of.stack) + kStack);
  *--top = nullptr;  // the stack pointer on entry is 8 past a multiple of 16, as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  of.position = top;
}

#else

// `position` is a context of its own.
void change(void** from, void* to) {
  if (!*from) *from = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(*from), static_cast<ucontext_t*>(to));
}

void prepare(Fiber& of, void (*entry)()) {
  if (!of.position) of.position = new ucontext_t;
  auto* context = static_cast<ucontext_t*>(of.position);
  getcontext(context);
  context->uc_stack.ss_sp = of.stack;
  context->uc_stack.ss_size = kStack;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
}

#endif

// --- the address sanitizer has to know on which stack it is.

#if defined(__SANITIZE_ADDRESS__)
const void* main_stack = nullptr;
size_t main_size = 0;
void leave(void** fake, const void* stack, size_t size) { __sanitizer_start_switch_fiber(fake, stack, size); }
void arrive_in_fiber(void* fake) { __sanitizer_finish_switch_fiber(fake, &main_stack, &main_size); }
void arrive_in_scheduler(void* fake) { __sanitizer_finish_switch_fiber(fake, nullptr, nullptr); }
#else
const void* const main_stack = nullptr;
const size_t main_size = 0;
void leave(void**, const void*, size_t) {}
void arrive_in_fiber(void*) {}
void arrive_in_scheduler(void*) {}
#endif

void entry() {
  arrive_in_fiber(nullptr);
  block->kernel();
  fiber->done = true;
  --block->alive;
  leave(nullptr, main_stack, main_size);  // null: this fiber will not be back
  change(&fiber->position, block->scheduler);
  fail("a thread that had ended was run");
}

void resume(Fiber& next) {
  fiber = &next;
  threadIdx = next.thread;
  void* fake = nullptr;
  leave(&fake, next.stack, kStack);
  change(&block->scheduler, next.position);
  arrive_in_scheduler(fake);
}

bool can_run(const Fiber& of) { return !of.done && (!of.waits || of.barrier->generation != of.generation); }

}  // namespace

void yield() {
  void* fake = nullptr;
  leave(&fake, main_stack, main_size);
  change(&fiber->position, block->scheduler);
  arrive_in_fiber(fake);
}

// Warp after warp, each as far as it gets; who is first is drawn again whenever all have stopped.
void run_block(std::mt19937& random) {
  block = &pool().front();
  const unsigned threads = block->threads, warps = (threads + kWarp - 1) / kWarp;
  block->barrier = {};
  block->alive = threads;
  block->warps.assign(warps, {});
  for (auto& warp : block->warps) std::memset(warp.slots, 0xff, sizeof warp.slots);
  if (block->fibers.size() < threads) block->fibers.resize(threads);
  for (unsigned k = 0; k < threads; ++k) {
    Fiber& own = block->fibers[k];
    if (!own.stack) {
      own.stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (own.stack == MAP_FAILED) fail("no memory for a thread's stack");
    }
    own.thread = dim3(k % blockDim.x, k / blockDim.x % blockDim.y, k / blockDim.x / blockDim.y);
    own.lane = k % kWarp;
    own.warp = k / kWarp;
    own.done = own.waits = false;
    prepare(own, entry);
  }
  std::vector<unsigned> warp_order(warps), lanes;
  for (unsigned w = 0; w < warps; ++w) warp_order[w] = w;
  while (block->alive > 0) {
    if (seed) std::shuffle(warp_order.begin(), warp_order.end(), random);
    bool any = false;
    for (const unsigned w : warp_order) {
      const unsigned first = w * kWarp, last = std::min(first + kWarp, threads);
      for (bool moved = true; moved; any = any || moved) {
        moved = false;
        lanes.resize(last - first);
        for (unsigned k = first; k < last; ++k) lanes[k - first] = k;
        if (seed) std::shuffle(lanes.begin(), lanes.end(), random);
        for (const unsigned k : lanes)
          if (can_run(block->fibers[k])) {
            resume(block->fibers[k]);
            moved = true;
          }
      }
    }
    if (!any) fail("threads wait for others that never come");
  }
  fiber = nullptr;
  block = nullptr;
}

}  // namespace emulator
