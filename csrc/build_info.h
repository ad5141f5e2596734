// How this build was made, and which kernels it can use: the keys are declared in src/lstm_fused/_C.pyi.
// The LSTM_FUSED_* macros come from setup.py.
#pragma once

#include <Python.h>

#include <string>
#include <vector>

#include "cpu/isa.h"

#ifdef __clang__
#define LSTM_FUSED_COMPILER "Clang " __clang_version__
#else
#define LSTM_FUSED_COMPILER "GCC " __VERSION__
#endif

namespace lstm_fused {

// add(key, value) for each; a value is a std::string, a bool, or a std::vector<std::string>.
template <class Add>
void each_build_fact(Add add) {
  std::vector<std::string> isas;
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512, Isa::avx512_bf16})
    if (isa_compiled(isa)) isas.push_back(isa_name(isa));

  add("version", std::string(LSTM_FUSED_VERSION));
  add("python", std::string(PY_VERSION));
  add("torch", std::string(LSTM_FUSED_TORCH));
  add("pybind11", std::string(LSTM_FUSED_PYBIND11));
  add("compiler", std::string(LSTM_FUSED_COMPILER));
  add("cpp_standard", "C++" + std::to_string(__cplusplus / 100 % 100));
  add("flags", std::string(LSTM_FUSED_FLAGS));
  add("isas", isas);
  add("isa", std::string(isa_name(isa_in_use())));
  add("cuda", static_cast<bool>(LSTM_FUSED_HAVE_CUDA));
  add("cuda_reason", std::string(LSTM_FUSED_CUDA_REASON));
}

}  // namespace lstm_fused
