// The Python module lstm_fused._C: how this build was made, and which kernels it can use.
// A module of its own, without torch headers: pybind11 needs the full Python API, the ops use the limited one.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "build_info.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "How this build of lstm_fused was made.";
  m.def(
      "build_info",
      [] {
        py::dict info;
        lstm_fused::each_build_fact([&](const char* key, const auto& value) { info[key] = value; });
        return info;
      },
      "Versions, compiler, instruction sets and devices of this build.");
}
