// The metadata of an array, read once, and the memory that other objects export.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <string>
#include <vector>

namespace schuss::bindings {

namespace py = pybind11;

/// The name of an array in messages: "Adam.step" and "grads['W1']".
struct Name {
    std::string call;
    std::string argument;

    std::string text() const { return call + ": " + argument; }
};

/// The fields of an array in memory, without a call or a change of reference counts.
inline const py::detail::PyArray_Proxy& fields(const py::array& array) {
    return *py::detail::array_proxy(array.ptr());
}

/// Whether the object has the attribute. Unlike pybind11's function, this passes on every error but
/// AttributeError.
bool has_attribute(py::handle object, const char* name);

/// Whether the object is an array or exports its memory without a copy.
bool is_array_like(py::handle object);

/// Whether the class of the object is ndarray itself: a subclass could have a mask.
inline bool is_plain_array(py::handle object) {
    return Py_TYPE(object.ptr()) == py::detail::npy_api::get().PyArray_Type_;
}

/// The dtype of bfloat16. ImportError if ml_dtypes, which defines it for NumPy, is not installed.
py::dtype bfloat16_dtype(const Name& name);

/// The object's memory as a NumPy array, never a copy. TypeError if the object does not export its
/// memory, or if it has a mask, which the array would lack. ImportError as `bfloat16_dtype`.
py::array as_array(py::handle object, const Name& name);

/// While the returned object lives, NumPy does not resize the array that owns the memory.
py::object hold(const py::array& array);

/// Data, shape, strides and dtype of an array, read at one moment.
///
/// The array itself can be reshaped, resized or given another dtype at any time: by another thread,
/// or by user code that a call into Python runs (a profiler, a container). So checks, allocations
/// and steps read the view, which does not change. The view also keeps the memory alive: it holds a
/// reference to the array that owns it, and a weak reference, because of which NumPy does not
/// resize that array.
class ArrayView {
  public:
    ArrayView() = default;

    /// TypeError if the object does not export its memory.
    ArrayView(py::handle object, const Name& name);

    std::byte* data() const { return data_; }
    std::size_t ndim() const { return shape_.size(); }
    const std::vector<std::size_t>& shape() const { return shape_; }
    const std::vector<std::ptrdiff_t>& strides() const { return strides_; }  // in bytes
    const py::dtype& dtype() const { return dtype_; }
    std::size_t itemsize() const { return static_cast<std::size_t>(dtype_.itemsize()); }
    std::size_t size() const;
    bool writeable() const { return writeable_; }

    /// The object that the user gave.
    const py::object& object() const { return object_; }

    /// The same object if it is a NumPy array; otherwise the array that it exported.
    const py::array& array() const { return array_; }

    /// Whether the user gave a NumPy array.
    bool is_own_array() const { return object_.is(array_); }

    /// Whether another array owns the memory.
    bool is_view() const { return !owner_.is(array_); }

    /// A new ndarray of this memory, which keeps the memory alive too.
    py::array plain() const;

    /// The same for contiguous elements of it, as an array with one axis.
    py::array part(std::byte* first, std::size_t count) const;

    /// Whether the array and its owner still have this memory: `__setstate__` gives an array other
    /// memory and frees the old. Runs no Python code.
    bool is_in_place() const;

    /// Whether the array is in place, has the same size, and is writeable if it was. Runs no Python
    /// code.
    bool has_its_memory() const;

    bool has_its_dtype() const { return fields(array_).descr == dtype_.ptr(); }

    /// Whether an object that is not a NumPy array still exports the same memory. May run user
    /// code.
    bool shows_its_memory(const Name& name) const;

    /// For Python's cycle collector.
    int traverse(visitproc visit, void* arg) const;

  private:
    py::array new_array(std::byte* data, const std::vector<std::size_t>& shape,
                        const std::vector<std::ptrdiff_t>& strides) const;

    py::object object_;
    py::array array_;
    py::array owner_;    // of the memory, as far as NumPy knows
    py::object hold_;    // a weak reference to it
    py::object tensor_;  // the memory and layout of a PyTorch tensor
    char* owners_data_ = nullptr;
    std::byte* data_ = nullptr;
    std::vector<std::size_t> shape_;
    std::vector<std::ptrdiff_t> strides_;
    py::dtype dtype_;
    bool writeable_ = false;
};

/// Whether both have the same elements in the same memory.
bool same_memory(const ArrayView& a, const ArrayView& b);

/// ValueError if the array was resized, given other memory or made read-only since it was read.
void check_has_its_memory(const ArrayView& view, const Name& name);

/// ValueError if an object that is to be written exports other memory at each access: the result
/// would be lost.
void check_shows_its_memory(const ArrayView& view, const Name& name);

}  // namespace schuss::bindings
