// From the instruction set in use to its kernels.
#include "cpu/kernels.h"

namespace lstm_fused::cpu {

#define LSTM_FUSED_DECLARE(isa)                \
  namespace isa {                              \
  extern const Kernels<float> float_kernels;   \
  extern const Kernels<double> double_kernels; \
  }
LSTM_FUSED_DECLARE(baseline)
LSTM_FUSED_DECLARE(avx2)
LSTM_FUSED_DECLARE(avx512)
#undef LSTM_FUSED_DECLARE
namespace avx512_bf16 {
extern const Kernels<float> pair_kernels;
}

const Kernels<float>* bfloat16_kernels(Isa isa) {
#ifdef LSTM_FUSED_HAVE_AVX512_BF16
  if (isa == Isa::avx512_bf16) return &avx512_bf16::pair_kernels;
#endif
  (void)isa;
  return nullptr;
}

template <>
const Kernels<float>& kernels<float>(Isa isa) {
  switch (isa) {
#ifdef LSTM_FUSED_HAVE_AVX512
    case Isa::avx512_bf16:
    case Isa::avx512:
      return avx512::float_kernels;
#endif
#ifdef LSTM_FUSED_HAVE_AVX2
    case Isa::avx2:
      return avx2::float_kernels;
#endif
    default:
      return baseline::float_kernels;
  }
}

template <>
const Kernels<double>& kernels<double>(Isa isa) {
  switch (isa) {
#ifdef LSTM_FUSED_HAVE_AVX512
    case Isa::avx512_bf16:
    case Isa::avx512:
      return avx512::double_kernels;
#endif
#ifdef LSTM_FUSED_HAVE_AVX2
    case Isa::avx2:
      return avx2::double_kernels;
#endif
    default:
      return baseline::double_kernels;
  }
}

}  // namespace lstm_fused::cpu
