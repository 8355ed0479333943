// One look that tells whether a parameter and its gradient are as they were in the step before.
//
// A step of a thousand small arrays is as fast as this look, and what the look reads has left the
// caches since the last one. So what it compares with lies close together and in order, a cache
// line an array, and the arrays' own fields are fetched ahead.
#pragma once

#include <pybind11/numpy.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "bindings/array_view.hpp"
#include "bindings/overlap.hpp"

namespace schuss::bindings {

class ArrayCache {
  public:
    /// Takes a parameter in, of which no gradient is known yet. Its array must outlive this.
    void add(const ArrayView& parameter);

    /// Whether parameter i is as it was: not resized, not seen as another, not frozen in place.
    bool parameter_is_unchanged(std::size_t i) const;

    /// The gradient's first element, if the gradient differs from the one remembered at most in
    /// where it lies, and lies in the gap; else nullptr.
    std::byte* matches(std::size_t i, const py::array& gradient) const;

    /// Whether the gradient is as it was when it was remembered, and lies there.
    bool at_address(std::size_t i, const py::array& gradient, const std::byte* first) const;

    /// What gradient i was found to be. gap: around it, where nothing is written.
    void remember(std::size_t i, const ArrayView& gradient, const Bounds& gap);
    void forget(std::size_t i) { cache_[i].gradient_dtype = nullptr; }

    /// Before a look at i: fetches what the looks after it will read.
    void prefetch(std::size_t i, const std::vector<py::object>& gradients) const;

  private:
    struct alignas(64) Entry {
        PyObject* parameter;
        char* data;
        PyObject* dtype;
        PyObject* gradient_dtype;    // nullptr: no gradient is known
        std::size_t least, most;     // between which the gradient's first element may lie
        std::uint32_t misalignment;  // of that element
        std::uint32_t item_size;     // of the gradient, a power of two
        std::uint32_t axes;
        std::uint32_t place;  // in axes_
    };

    bool same_layout(const Entry& glance, const py::array& gradient) const;

    std::vector<Entry> cache_;
    // For each parameter its shape, its strides, and the gradient's strides.
    std::vector<py::ssize_t> axes_;
    std::vector<py::object> dtypes_;  // of parameters and gradients: kept alive, so that none has
                                      // the address of one that is gone
};

}  // namespace schuss::bindings
