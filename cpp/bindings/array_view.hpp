// An array as it was when it was looked at, and how other objects show their memory.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <string>
#include <vector>

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

/// Whether the object has the attribute. What else than AttributeError is raised, passes through,
/// which that of pybind11 drops.
bool has_attribute(py::handle object, const char* name);

/// Whether the object is an array or exports its memory without a copy.
bool is_array_like(py::handle object);

/// Whether the object is an ndarray and of no subclass, which could have a mask.
bool is_plain_array(py::handle object);

/// The object's memory as a NumPy array, never a copy of it. TypeError if it has none to show, or
/// if it has a mask, which the array would not have.
py::array as_array(py::handle object, const Name& name);

/// While what this returns lives, NumPy does not resize the array that owns the memory.
py::object hold(const py::array& array);

/// Data, shape, strides and dtype of an array, read in one moment.
///
/// The array itself can be reshaped, resized or seen as another dtype at any time: by another
/// thread, or by the user's code that a call into Python runs (a profiler, a container). So checks,
/// allocations and steps read the view, which stays as it is. The view holds the memory too: it
/// keeps the array that owns it, and NumPy resizes no array that has a weak reference.
class ArrayView {
  public:
    ArrayView() = default;

    /// TypeError if the object has no memory to show.
    ArrayView(py::handle object, const Name& name);

    std::byte* data() const { return data_; }
    std::size_t ndim() const { return shape_.size(); }
    const std::vector<std::size_t>& shape() const { return shape_; }
    const std::vector<std::ptrdiff_t>& strides() const { return strides_; }  // in bytes
    const py::dtype& dtype() const { return dtype_; }
    std::size_t itemsize() const { return static_cast<std::size_t>(dtype_.itemsize()); }
    std::size_t size() const;
    bool writeable() const { return writeable_; }

    /// What the user gave.
    const py::object& object() const { return object_; }

    /// The same if it is a NumPy array; else the array that it showed.
    const py::array& array() const { return array_; }

    /// Whether the user gave a NumPy array.
    bool is_own_array() const { return object_.is(array_); }

    /// Whether another array owns the memory.
    bool is_view() const { return !owner_.is(array_); }

    /// A new ndarray of this memory, for NumPy's own functions. It holds the memory as well.
    py::array plain() const;

    /// Whether the array and the one that owns its memory still have it: `__setstate__` gives an
    /// array other memory and frees the old. Runs no Python.
    bool is_in_place() const;

    /// Whether the array is in place, as large, and may be written if it could. Runs no Python.
    bool has_its_memory() const;

    bool has_its_dtype() const { return fields(array_).descr == dtype_.ptr(); }

    /// Whether an object that is no NumPy array shows the same memory again. May run the user's
    /// code.
    bool shows_its_memory(const Name& name) const;

    /// For Python's collector of cycles.
    int traverse(visitproc visit, void* arg) const;

  private:
    py::object object_;
    py::array array_;
    py::array owner_;    // of the memory, as far as NumPy knows
    py::object hold_;    // a weak reference to it
    py::object tensor_;  // where a tensor of PyTorch's has its memory
    char* owners_data_ = nullptr;
    std::byte* data_ = nullptr;
    std::vector<std::size_t> shape_;
    std::vector<std::ptrdiff_t> strides_;
    py::dtype dtype_;
    bool writeable_ = false;
};

/// Whether they have the same elements, in the same memory.
bool same_memory(const ArrayView& a, const ArrayView& b);

/// ValueError if the array was resized, given other memory or made read-only meanwhile.
void check_has_its_memory(const ArrayView& view, const Name& name);

/// ValueError if the object, which is to be written, shows other memory each time it is asked:
/// what is written there would be lost.
void check_shows_its_memory(const ArrayView& view, const Name& name);

}  // namespace schuss::bindings
