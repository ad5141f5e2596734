// The Python module lstm_fused._cuda: importing it registers the ops for CUDA tensors.
#include <Python.h>

#include "cuda/ops.h"

STABLE_TORCH_LIBRARY_IMPL(lstm_fused, CUDA, m) { lstm_fused::cuda::implement_ops(m); }

PyMODINIT_FUNC PyInit__cuda(void) {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
