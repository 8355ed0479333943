// What module.cpp calls, a function a file.
#pragma once

#include <pybind11/pybind11.h>

namespace schuss::bindings {

void register_ewma(pybind11::module_& module);
void register_batches(pybind11::module_& module);
void register_runtime(pybind11::module_& module);
void register_steps(pybind11::module_& module);
void register_memory_floor(pybind11::module_& module);

}  // namespace schuss::bindings
