// The Python module lstm_fused._ops: importing it registers the ops (cpu/ops.cpp). It also has lstm_fused._C's
// build_info(), in Python's limited API, because a wheel for every Python is without lstm_fused._C.
#include <Python.h>

#include <exception>

#include "build_info.h"

namespace lstm_fused {
namespace {

PyObject* to_python(bool value) { return PyBool_FromLong(value); }

PyObject* to_python(const std::string& value) { return PyUnicode_FromString(value.c_str()); }

PyObject* to_python(const std::vector<std::string>& values) {
  PyObject* const list = PyList_New(0);
  for (const std::string& value : values) {
    PyObject* const text = to_python(value);
    PyList_Append(list, text);
    Py_DECREF(text);
  }
  return list;
}

PyObject* build_info(PyObject*, PyObject*) {
  PyObject* const info = PyDict_New();
  try {
    each_build_fact([&](const char* key, const auto& value) {
      PyObject* const object = to_python(value);
      PyDict_SetItemString(info, key, object);
      Py_DECREF(object);
    });
  } catch (const std::exception& error) {  // LSTM_FUSED_ISA is wrong
    Py_DECREF(info);
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  return info;
}

}  // namespace
}  // namespace lstm_fused

PyMODINIT_FUNC PyInit__ops(void) {
  static PyMethodDef methods[] = {
      {"build_info", lstm_fused::build_info, METH_NOARGS, "As lstm_fused._C.build_info()."}, {}};
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_ops", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
