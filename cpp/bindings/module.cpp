#include <pybind11/pybind11.h>

#include <stdexcept>

#include "bindings/register.hpp"

namespace {

constexpr const char* refusal =
    "schuss: this is a subinterpreter, expected the main interpreter (a process of its own, as of "
    "multiprocessing, can import schuss)";

bool is_in_subinterpreter() {
    return PyInterpreterState_Get() != PyInterpreterState_Main();
}

}  // namespace

PYBIND11_MODULE(core, module) {
    // Since Python 3.13 the function below runs in the main interpreter, before this one.
    if (is_in_subinterpreter()) throw std::runtime_error(refusal);
    module.attr("__version__") = SCHUSS_VERSION;
    schuss::bindings::register_arrays(module);
    schuss::bindings::register_batches(module);
    schuss::bindings::register_busy_guard(module);
    schuss::bindings::register_copy_bytes(module);
    schuss::bindings::register_ewma(module);
    schuss::bindings::register_flat_arrays(module);
    schuss::bindings::register_formula(module);
    schuss::bindings::register_kernels(module);
    schuss::bindings::register_memory_floor(module);
    schuss::bindings::register_memory_order(module);
    schuss::bindings::register_options(module);
    schuss::bindings::register_rows(module);
    schuss::bindings::register_runtime(module);
    schuss::bindings::register_small_update(module);
    schuss::bindings::register_tree(module);
    schuss::bindings::register_optimizer(module);
}

/// Python calls this to import `schuss._core`. In a subinterpreter of Python 3.11, pybind11 would
/// wait forever for the GIL, which its own thread holds.
extern "C" PYBIND11_EXPORT PyObject* PyInit__core() {
    if (is_in_subinterpreter()) {
        PyErr_SetString(PyExc_ImportError, refusal);
        return nullptr;
    }
    return PyInit_core();
}
