// The array contract: what may be a parameter, a gradient, a state, and what is refused, with
// which message. Every refusal names the call, the argument, what it was and what was expected.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <string>
#include <vector>

#include "numbers/number.hpp"

namespace schuss::bindings {

namespace py = pybind11;

/// What messages call an array: "Adam.step" and "grads['W1']".
struct Name {
    std::string call;
    std::string argument;

    std::string text() const { return call + ": " + argument; }
};

/// An array's fields as they lie in memory, without a call or a count of references.
inline const py::detail::PyArray_Proxy& fields(const py::array& array) {
    return *py::detail::array_proxy(array.ptr());
}

/// Whether the object is an array or exports its memory without a copy.
bool is_array_like(py::handle object);

/// The object's memory as a NumPy array, never a copy of it. TypeError if it has none to show.
py::array as_array(py::handle object, const Name& name);

/// A view of the array as a plain ndarray: a subclass could answer for itself.
py::array plain(const py::array& array);

/// TypeError unless the elements are of a supported format in native byte order.
numbers::Number number_of(const py::array& array, const Name& name);

/// The same, of a format that is computed in.
numbers::Number computed_number_of(const py::array& array, const Name& name);

std::vector<std::size_t> shape_of(const py::array& array);

/// TypeError or ValueError unless the array has the format and shape of the other.
void check_like(const py::array& array, const Name& name, const py::array& other,
                const std::string& other_name);

/// What may be the format of an array that goes with a parameter.
enum class Goes {
    as_computed,        // that which the parameter is computed in
    converted,          // any that is computed in the same
    rounded_at_random,  // that which it is computed in, or bfloat16 for float32
    halved,             // float16 or bfloat16, for a parameter in float32
};

/// TypeError or ValueError unless the array has such a format and the shape of the parameter.
numbers::Number check_goes_with(const py::array& array, const Name& name, Goes how,
                                const py::array& parameter, const std::string& parameter_name);

/// Whether the strides alone show that no two elements meet: each axis, from the least stride to
/// the greatest, steps over all that lies within it.
bool plainly_distinct(const py::array& array);

/// ValueError unless the array can be written, each element in a place of its own.
void check_writable(const py::array& array, const Name& name);

/// The addresses from the first to past the last byte of an array.
struct Bounds {
    std::size_t begin, end;

    bool meets(const Bounds& other) const { return begin < other.end && other.begin < end; }
};

Bounds bounds_of(const py::array& array);

/// The arrays that a call writes. None may share memory with another, and no array that it only
/// reads may share memory with any of them.
class WrittenMemory {
  public:
    struct Entry {
        py::array array;
        std::string argument;
        Bounds bounds;
    };

    WrittenMemory() = default;

    /// ValueError if two of the arrays share memory.
    WrittenMemory(const std::string& call, std::vector<Entry> entries);

    /// ValueError if the array shares memory with a written one. gap: a range that an earlier call
    /// found free of them; most arrays lie in the same gap from step to step.
    void check_apart(const py::array& array, const Bounds& bounds, const Name& name,
                     Bounds& gap) const;

    static Entry entry(py::array array, std::string argument);

    /// For Python's collector of cycles.
    int traverse(visitproc visit, void* arg) const {
        for (const Entry& entry : entries_) Py_VISIT(entry.array.ptr());
        return 0;
    }

  private:
    std::vector<Entry> entries_;   // sorted by where they begin
    std::vector<Bounds> covered_;  // what they cover, as disjoint ranges
};

}  // namespace schuss::bindings
