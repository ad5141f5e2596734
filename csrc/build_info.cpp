// The Python module lstm_fused._C: how this build was made, and which kernels it can use.
// A module of its own, without torch headers: pybind11 needs the full Python API, the ops use the limited one.
// The LSTM_FUSED_* macros come from setup.py.
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/isa.h"

#ifdef __clang__
#define LSTM_FUSED_COMPILER "Clang " __clang_version__
#else
#define LSTM_FUSED_COMPILER "GCC " __VERSION__
#endif

namespace py = pybind11;

namespace {

// The keys are declared in src/lstm_fused/_C.pyi.
py::dict build_info() {
  using namespace lstm_fused;
  py::list isas;
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512, Isa::avx512_bf16})
    if (isa_compiled(isa)) isas.append(isa_name(isa));

  py::dict info;
  info["version"] = LSTM_FUSED_VERSION;
  info["python"] = PY_VERSION;
  info["torch"] = LSTM_FUSED_TORCH;
  info["pybind11"] = LSTM_FUSED_PYBIND11;
  info["compiler"] = LSTM_FUSED_COMPILER;
  info["cpp_standard"] = "C++" + std::to_string(__cplusplus / 100 % 100);
  info["flags"] = LSTM_FUSED_FLAGS;
  info["isas"] = isas;
  info["isa"] = isa_name(isa_in_use());
  info["cuda"] = static_cast<bool>(LSTM_FUSED_HAVE_CUDA);
  info["cuda_reason"] = LSTM_FUSED_CUDA_REASON;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "How this build of lstm_fused was made.";
  m.def("build_info", &build_info, "Versions, compiler, instruction sets and devices of this build.");
}
