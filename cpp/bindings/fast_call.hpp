// Functions that Python calls without the dispatch of pybind11, which takes longer than a small
// step.
#pragma once

#include <pybind11/pybind11.h>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif

namespace schuss::bindings {

namespace py = pybind11;

/// Returns what a function returns to Python; raises there what it throws.
template <class Function>
PyObject* call_from_python(const Function& function) {
    try {
        return py::object(function()).release().ptr();
    } catch (py::error_already_set& error) {
        error.restore();
#if defined(__GLIBCXX__)
    } catch (abi::__forced_unwind&) {  // ends a daemon thread after the interpreter
        throw;
#endif
    } catch (...) {
        py::detail::try_translate_exceptions();
    }
    return nullptr;
}

/// The C++ object of a method's `self`, whose class Python has checked.
template <class Class>
Class& self_of(PyObject* self) {
    auto* const instance = reinterpret_cast<py::detail::instance*>(self);
    auto* const object = instance->get_value_and_holder().template value_ptr<Class>();
    if (object == nullptr) throw py::type_error("__init__ of the object was not called");
    return *object;
}

/// The positional arguments of a call.
class Arguments {
  public:
    Arguments(const char* function, PyObject* const* values, Py_ssize_t count, Py_ssize_t least,
              Py_ssize_t most)
        : values_(values), count_(count) {
        if (count >= least && count <= most) return;
        PyErr_Format(PyExc_TypeError, "%s() takes from %zd to %zd arguments but %zd were given",
                     function, least, most, count);
        throw py::error_already_set();
    }

    Py_ssize_t count() const { return count_; }
    py::handle operator[](Py_ssize_t i) const { return values_[i]; }

    /// An argument, or else its default.
    double number(Py_ssize_t i, double otherwise) const {
        if (i >= count_) return otherwise;
        const double value = PyFloat_AsDouble(values_[i]);
        if (value == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
        return value;
    }
    template <class T>
    T value(Py_ssize_t i, T otherwise) const {
        return i < count_ ? (*this)[i].cast<T>() : otherwise;
    }

  private:
    PyObject* const* values_;
    Py_ssize_t count_;
};

using FastFunction = PyObject* (*)(PyObject* self, PyObject* const* values, Py_ssize_t count);

/// signature: how the documentation begins, as `PyMethodDef` describes it.
inline PyMethodDef fast_definition(const char* name, FastFunction function, const char* signature) {
    // A cast by way of another function pointer, as Python documents it.
    const auto any = reinterpret_cast<void (*)()>(function);
    return {name, reinterpret_cast<PyCFunction>(any), METH_FASTCALL, signature};
}

/// Adds a method to a class. The definition must stay valid.
inline void add_method(py::handle cls, PyMethodDef& definition) {
    auto* const type = reinterpret_cast<PyTypeObject*>(cls.ptr());
    const auto method = py::reinterpret_steal<py::object>(PyDescr_NewMethod(type, &definition));
    if (!method) throw py::error_already_set();
    cls.attr(definition.ml_name) = method;
}

/// Adds a function to a module. The definition must stay valid.
inline void add_function(py::module_& module, PyMethodDef& definition) {
    const py::object name = module.attr("__name__");
    const auto function =
        py::reinterpret_steal<py::object>(PyCFunction_NewEx(&definition, nullptr, name.ptr()));
    if (!function) throw py::error_already_set();
    module.attr(definition.ml_name) = function;
}

}  // namespace schuss::bindings
