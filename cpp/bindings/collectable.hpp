// Lets Python's cycle collector see the objects that a C++ object holds.
#pragma once

#include <pybind11/pybind11.h>

namespace schuss::bindings {

/// For py::custom_type_setup of a class with the methods `traverse(visit, arg)`, which visits the
/// objects, and `release()`, which drops them.
template <class T>
void make_collectable(PyHeapTypeObject* heap_type) {
    namespace py = pybind11;
    PyTypeObject& type = heap_type->ht_type;
    type.tp_flags |= Py_TPFLAGS_HAVE_GC;
    type.tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
        Py_VISIT(Py_TYPE(self));
        if (!py::detail::is_holder_constructed(self)) return 0;
        return py::cast<const T&>(py::handle(self)).traverse(visit, arg);
    };
    type.tp_clear = [](PyObject* self) {
        if (py::detail::is_holder_constructed(self)) py::cast<T&>(py::handle(self)).release();
        return 0;
    };
}

}  // namespace schuss::bindings
