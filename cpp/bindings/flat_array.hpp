// Contiguous arrays with one axis, which need no layout.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>

#include "bindings/array_view.hpp"
#include "bindings/arrays.hpp"

namespace schuss::bindings {

/// The elements of an array that is contiguous and aligned along its only axis.
struct FlatArray {
    ArrayView view;
    ElementType type;

    std::byte* data() const { return view.data(); }
    numbers::DType dtype() const { return type.dtype; }  // of a component

    /// The number of elements, two for each complex number.
    std::size_t elements() const { return view.size() * type.components; }
};

/// ValueError unless the array has one axis without gaps, and is aligned to its elements.
void check_flat(const ArrayView& array, const Name& name, std::size_t alignment);

/// An array of numbers. TypeError or ValueError if it is none, or not flat. written: whether it
/// must be writeable.
FlatArray flat_array(py::handle array, const Name& name, bool written = false);

}  // namespace schuss::bindings
