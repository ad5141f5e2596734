#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace lstm_fused {
namespace {

constexpr Isa kAll[] = {Isa::baseline, Isa::avx2, Isa::avx512, Isa::avx512_bf16};

bool usable(Isa isa) { return isa_compiled(isa) && isa_supported(isa); }

Isa choose() {
  const char* variable = std::getenv("LSTM_FUSED_ISA");
  const std::string wanted = variable ? variable : "";
  Isa best = Isa::baseline;
  std::string available;
  for (Isa isa : kAll) {
    if (!usable(isa)) continue;
    if (wanted == isa_name(isa)) return isa;
    best = isa;
    available += (available.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  if (!wanted.empty())
    throw std::runtime_error("LSTM_FUSED_ISA is '" + wanted +
                             "', but the instruction sets that this build and this CPU share are: " + available);
  return best;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

bool isa_compiled(Isa isa) {
  switch (isa) {
    case Isa::avx512_bf16:
#ifdef LSTM_FUSED_HAVE_AVX512_BF16
      return true;
#else
      return false;
#endif
    case Isa::avx512:
#ifdef LSTM_FUSED_HAVE_AVX512
      return true;
#else
      return false;
#endif
    case Isa::avx2:
#ifdef LSTM_FUSED_HAVE_AVX2
      return true;
#else
      return false;
#endif
    default:
      return true;
  }
}

bool isa_supported(Isa isa) {
#if defined(__x86_64__)
  // These builtins also ask the operating system whether it saves the wide registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  switch (isa) {
    case Isa::avx512_bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16");
    case Isa::avx512:
      return avx512;
    case Isa::avx2:
      return avx2;
    default:
      return true;
  }
#else
  return isa == Isa::baseline;
#endif
}

Isa isa_in_use() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace lstm_fused
