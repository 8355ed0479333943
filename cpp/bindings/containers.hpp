// Containers of arrays as Python defines them: sequences and mappings, built in or not, and objects
// with declared fields.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <initializer_list>
#include <string>
#include <vector>

#include "bindings/array_view.hpp"
#include "bindings/free_threads.hpp"

namespace schuss::bindings {

namespace py = pybind11;

bool is_mapping(py::handle object);
bool is_sequence(py::handle object);

/// Whether the object is an instance of a dataclass or of a class of attrs.
bool has_fields(py::handle object);

bool is_container(py::handle object);

/// The names of the fields of such an object. Fields whose metadata have `static=True` (JAX,
/// Equinox) or `pytree_node=False` (Flax) are left out.
std::vector<py::object> fields_of(py::handle object);

/// The value of a field; null if it has none.
py::object field_at(py::handle object, py::handle name);

/// Whether the object is an array or exports one, or has some rows of one. A dict is not, although
/// its keys may be readable as attributes, such as `__dlpack__`. A class is not, although it has
/// the attributes of its instances.
bool is_leaf(py::handle object);

/// Whether the object is a dict, or a list or tuple, whose access methods are those of the built-in
/// class. Its items can be read without a call.
bool is_plain_dict(py::handle object);
bool is_plain_sequence(py::handle object);

std::size_t length_of(py::handle container);

/// The items that iteration over the container gives. ValueError if their number differs from the
/// length: the iteration might never end.
py::list iterated(py::handle container, const Name& name);

/// The value of a mapping at a key; null if it does not have the key. Looks for the key first,
/// since access may create it.
py::object value_at(py::handle mapping, py::handle key, bool plain_dict);

/// Adds a key to a set; false if the set has it already. Unlike pybind11's method, this raises.
bool add(const py::set& keys, py::handle key);

/// The keys of a mapping that are not among these.
std::vector<py::object> other_keys(py::handle mapping, const std::vector<py::object>& keys,
                                   const Name& name);

/// The parts of error messages.
std::string text(py::handle key);
std::string subscript(py::handle key);
std::string attribute(py::handle name);
std::string kind_of(py::handle object);
std::string remedy(const std::string& name, const std::string& maker);

/// TypeError for an object that is neither an array nor a container. makers: functions that make
/// the expected kind of object. The message may suggest one of them.
[[noreturn]] void refuse_kind(py::handle object, const Name& name, const std::string& expected,
                              std::initializer_list<const char*> makers);

/// The values of a dict in its own order, as long as its keys are the expected ones in their order.
/// Locks the dict: no call into Python may run meanwhile.
class OrderedValues {
  public:
    OrderedValues(PyObject* dict, const std::vector<py::object>& keys)
        : lock_(dict), dict_(dict), keys_(keys) {}

    /// Moves to the next value; false at the end, or if the key is another.
    bool next() {
        PyObject* key = nullptr;
        return expected_ < keys_.size() && PyDict_Next(dict_, &position_, &key, &value) != 0 &&
               same(key, keys_[expected_++].ptr());
    }
    PyObject* value = nullptr;

  private:
    static bool same(PyObject* a, PyObject* b) {
        return a == b ||
               (PyUnicode_CheckExact(a) && PyUnicode_CheckExact(b) && PyUnicode_Compare(a, b) == 0);
    }

    ObjectLock lock_;
    PyObject* dict_;
    const std::vector<py::object>& keys_;
    std::size_t expected_ = 0;
    py::ssize_t position_ = 0;
};

}  // namespace schuss::bindings
