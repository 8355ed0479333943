// Memory that other libraries export by the DLPack protocol.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "bindings/array_view.hpp"

namespace schuss::bindings {

/// An array of the memory that the object exports by `__dlpack__`, never a copy. It is read-only
/// unless the object says that it may be written. Unlike numpy.from_dlpack, this knows bfloat16.
/// BufferError if the memory is not the CPU's, or of a dtype that NumPy lacks.
py::array from_dlpack(py::handle object, const Name& name);

}  // namespace schuss::bindings
