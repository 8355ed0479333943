// Cached array metadata: tells whether a parameter and its gradient are as in the step before.
//
// In a step of a thousand small arrays, these comparisons take most of the time: the memory that
// they read is no longer in the CPU's caches. Therefore each parameter has one cache line, the
// lines are contiguous and in order, and the fields of the arrays are prefetched.
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
    /// Adds a parameter whose gradient is not known yet. The array must outlive the cache.
    void add(const ArrayView& parameter);

    /// Whether parameter i has the same memory, shape, strides and dtype, and is writeable.
    bool parameter_is_unchanged(std::size_t i) const;

    /// The address of the gradient's first element, if the gradient has the stored metadata and is
    /// within the free range; otherwise nullptr. The address may differ from the stored gradient's.
    std::byte* matches(std::size_t i, const py::array& gradient) const;

    /// Whether the gradient is as it was stored, and has this first element.
    bool at_address(std::size_t i, const py::array& gradient, const std::byte* first) const;

    /// Stores the metadata of gradient i. free_range: the memory around it that no step writes.
    void store(std::size_t i, const ArrayView& gradient, const AddressRange& free_range);
    void invalidate(std::size_t i) { entries_[i].gradient_dtype = nullptr; }

    /// Stores that parameter i has no gradient: no gradient matches it. apart: how its item rests.
    void store_rest(std::size_t i, bool apart) { entries_[i].gradient_dtype = resting(apart); }
    bool rests(std::size_t i, bool apart) const {
        return entries_[i].gradient_dtype == resting(apart);
    }

    /// Prefetches the memory that comparisons of parameters after i read.
    void prefetch(std::size_t i, const std::vector<py::object>& gradients) const;

  private:
    struct alignas(64) Entry {
        PyObject* parameter;
        char* data;
        PyObject* dtype;
        PyObject* gradient_dtype;  // nullptr if the gradient is not known, or `resting`
        std::size_t min_first;     // bounds on the address of the gradient's first element
        std::size_t max_first;
        std::uint32_t misalignment;  // of the first element, modulo item_size
        std::uint32_t item_size;     // of the gradient, a power of two
        std::uint32_t ndim;
        std::uint32_t first_axis;  // its index in axes_
    };

    static PyObject* resting(bool apart) { return apart ? Py_Ellipsis : Py_None; }
    bool same_layout(const Entry& entry, const py::array& gradient) const;

    std::vector<Entry> entries_;
    // For each parameter its shape, its strides, and the gradient's strides.
    std::vector<py::ssize_t> axes_;
    std::vector<py::object> dtypes_;  // of parameters and gradients: kept alive, so that none has
                                      // the address of one that is gone
};

}  // namespace schuss::bindings
