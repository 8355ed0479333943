// What module.cpp calls, a function a file.
#pragma once

#include <pybind11/pybind11.h>

namespace schuss::bindings {

void register_averages(pybind11::module_& module);
void register_batches(pybind11::module_& module);
void register_processor(pybind11::module_& module);
void register_steps(pybind11::module_& module);
void register_yardstick(pybind11::module_& module);

}  // namespace schuss::bindings
