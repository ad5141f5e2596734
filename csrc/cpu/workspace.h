// Scratch memory of the calls of one thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace lstm_fused::cpu {

// On cache lines, not initialized, kept from call to call: fresh pages from the operating system cost a call of a small
// layer a tenth of its time. What a call takes is given back as it ends.
class Workspace {
 public:
  static Workspace& of_this_thread() {
    static thread_local Workspace workspace;
    return workspace;
  }

  template <typename T>
  T* take(int64_t count) {
    if (count == 0) return nullptr;
    const int64_t bytes = (count * static_cast<int64_t>(sizeof(T)) + kLine - 1) / kLine * kLine;
    if (used_ + bytes > size_) {
      const int64_t size = std::max(bytes, kSmallestBlock);
      blocks_.push_back(new_block(size));  // may throw: only then is it counted
      size_ = size;
      used_ = 0;
    }
    T* const p = reinterpret_cast<T*>(blocks_.back().get() + used_);
    used_ += bytes;
    total_ += bytes;
    return p;
  }

  // The memory taken during the lifetime of a Call is free again after it.
  class Call {
   public:
    explicit Call(Workspace& workspace) : workspace_(workspace) {}
    Call(const Call&) = delete;
    ~Call() { workspace_.give_back(); }

   private:
    Workspace& workspace_;
  };

 private:
  static constexpr int64_t kLine = 64, kSmallestBlock = 1 << 16, kHugePage = 1 << 21;
  static constexpr int64_t kKept = int64_t{256} << 20;  // bytes at most
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };

  static std::unique_ptr<char, Free> new_block(int64_t size) {
    void* block = nullptr;
    const bool large = size >= 2 * kHugePage;
    if (posix_memalign(&block, large ? kHugePage : kLine, size) != 0) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    // A product reads from all over the block: with small pages most reads would miss the table of pages. A wish, which
    // the system may not grant.
    if (large) madvise(block, size / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
    return std::unique_ptr<char, Free>(static_cast<char*>(block));
  }

  void give_back() {
    // After a call that needed several blocks the next one starts with a single block that is large enough.
    if (blocks_.size() > 1 || size_ > kKept) {
      blocks_.clear();
      size_ = 0;
      if (total_ <= kKept) {
        try {
          blocks_.push_back(new_block(total_));
          size_ = total_;
        } catch (const std::bad_alloc&) {  // the next call will ask for what it needs
        }
      }
    }
    used_ = total_ = 0;
  }

  std::vector<std::unique_ptr<char, Free>> blocks_;
  int64_t size_ = 0, used_ = 0;  // of the last block
  int64_t total_ = 0;            // taken by this call
};

}  // namespace lstm_fused::cpu
