// The functions that module.cpp calls. Each registers the functions and classes of one file.
#pragma once

#include <pybind11/pybind11.h>

namespace schuss::bindings {

class Optimizer;

void register_arrays(pybind11::module_& module);
void register_batches(pybind11::module_& module);
void register_busy_guard(pybind11::module_& module);
void register_copy_bytes(pybind11::module_& module);
void register_ewma(pybind11::module_& module);
void register_flat_arrays(pybind11::module_& module);
void register_formula(pybind11::module_& module);
void register_kernels(pybind11::module_& module);
void register_memory_floor(pybind11::module_& module);
void register_memory_order(pybind11::module_& module);
void register_optimizer(pybind11::module_& module);
void register_options(pybind11::module_& module);
void register_rows(pybind11::module_& module);
void register_runtime(pybind11::module_& module);
void register_small_update(pybind11::module_& module);
void register_tree(pybind11::module_& module);

}  // namespace schuss::bindings
