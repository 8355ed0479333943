// Gradients of some rows: their indices and their values.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/array_view.hpp"
#include "bindings/arrays.hpp"

namespace schuss::bindings {

namespace py = pybind11;

/// The gradient of an array: indices[i] is the row to which values[i] is added. Other rows are
/// zero.
class Rows {
  public:
    /// length: of the array, if it is known. TypeError or ValueError unless the indices are
    /// integers and the values have a row of numbers for each.
    Rows(py::handle indices, py::handle values, std::optional<std::int64_t> length = {});

    /// Rows each of which is there once: the sums of others.
    static Rows of_sums(py::handle indices, py::handle values) {
        Rows rows(indices, values);
        rows.are_sums_ = true;
        return rows;
    }
    bool are_sums() const { return are_sums_; }

    std::size_t size() const { return indices_.size(); }
    std::optional<std::int64_t> length() const { return length_; }
    const ArrayView& indices() const { return indices_; }
    const ArrayView& values() const { return values_; }

    /// TypeError or ValueError unless the values are rows of the parameter, in a dtype that its
    /// gradients may have. Returns what they are. name: of the gradient in messages.
    ElementType check_values(const Name& name, const ArrayView& parameter,
                             const std::string& parameter_name) const;

    /// ValueError if an array was given other memory since. Runs no Python code unless it raises.
    void check_in_place(const Name& name) const;

    /// For Python's cycle collector.
    int traverse(visitproc visit, void* arg) const;
    auto release() noexcept {
        return std::make_pair(std::exchange(indices_, {}), std::exchange(values_, {}));
    }

  private:
    ArrayView indices_, values_;
    std::optional<std::int64_t> length_;
    bool are_sums_ = false;
};

/// The integers of an array in C order, each the index of a row of the parameter. TypeError or
/// ValueError unless they are. Runs no Python code unless it raises.
std::vector<std::int64_t> row_indices(const ArrayView& array, const Name& name,
                                      const ArrayView& parameter,
                                      const std::string& parameter_name);

/// Whether the object is an instance of `Rows`.
bool is_rows(py::handle object);

/// The rows of such an instance, on which `__init__` must have been called.
const Rows& rows_in(py::handle object);

/// A gradient as an instance, if it is one or a sparse array of another library; otherwise null.
/// May run user code.
py::object as_rows(const py::object& gradient, const Name& name);

/// A sparse array of another library as an instance; null if it is none. Runs the function that
/// `set_sparse_reader` of the module was given.
py::object rows_of_sparse(py::handle gradient, const Name& name);

}  // namespace schuss::bindings
