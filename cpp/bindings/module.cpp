#include <pybind11/pybind11.h>

#include "bindings/register.hpp"

PYBIND11_MODULE(_core, module) {
    module.attr("__version__") = SCHUSS_VERSION;
    schuss::bindings::register_averages(module);
    schuss::bindings::register_batches(module);
    schuss::bindings::register_processor(module);
    schuss::bindings::register_steps(module);
    schuss::bindings::register_yardstick(module);
}
