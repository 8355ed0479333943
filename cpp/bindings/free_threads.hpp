// What replaces the GIL in a free-threaded interpreter: the locks of objects. With the GIL, all of
// it costs nothing.
#pragma once

#include <pybind11/critical_section.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <cstddef>
#include <utility>

namespace schuss::bindings {

namespace py = pybind11;

/// Locks an object as its built-in methods do. As with the GIL, calls into Python may let other
/// threads use the object meanwhile.
using ObjectLock = py::scoped_critical_section;

/// Item i of a list or tuple; null if it has fewer items.
inline py::object item_at(py::handle sequence, std::size_t i) {
    const ObjectLock lock(sequence);
    if (i >= static_cast<std::size_t>(PySequence_Fast_GET_SIZE(sequence.ptr()))) return {};
    return py::reinterpret_borrow<py::object>(PySequence_Fast_ITEMS(sequence.ptr())[i]);
}

/// The value of a dict at a key; null if it does not have the key.
inline py::object item_of(py::handle dict, py::handle key) {
#if PY_VERSION_HEX >= 0x030d0000
    PyObject* value = nullptr;
    if (PyDict_GetItemRef(dict.ptr(), key.ptr(), &value) < 0) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(value);
#else
    PyObject* const value = PyDict_GetItemWithError(dict.ptr(), key.ptr());
    if (value == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
    return py::reinterpret_borrow<py::object>(value);
#endif
}

/// A string of Python, made at first use and kept until the process ends. The initialization of a
/// local static variable would block other threads while it runs the interpreter.
class Interned {
  public:
    explicit constexpr Interned(const char* text) : text_(text) {}

    PyObject* get() {
        PyObject* string = string_.load(std::memory_order_acquire);
        if (string != nullptr) return string;
        string = PyUnicode_InternFromString(text_);  // the same one for every thread
        if (string == nullptr) throw py::error_already_set();
        string_.store(string, std::memory_order_release);
        return string;
    }

  private:
    const char* text_;
    std::atomic<PyObject*> string_ = nullptr;
};

/// A method of a class as Python calls it: under the lock of its object where there is no GIL.
#ifdef Py_GIL_DISABLED
template <class Class, class Result, class... Arguments>
auto locked(Result (Class::*method)(Arguments...)) {
    return [method](const py::object& self, Arguments... arguments) -> Result {
        const ObjectLock lock(self);
        return (self.cast<Class&>().*method)(std::forward<Arguments>(arguments)...);
    };
}
template <class Class, class Result, class... Arguments>
auto locked(Result (Class::*method)(Arguments...) const) {
    return [method](const py::object& self, Arguments... arguments) -> Result {
        const ObjectLock lock(self);
        return (self.cast<const Class&>().*method)(std::forward<Arguments>(arguments)...);
    };
}
#else
template <class Method>
Method locked(Method method) {
    return method;
}
#endif

}  // namespace schuss::bindings
