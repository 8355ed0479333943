// Rows as a step reads them: checked for a parameter, with their indices in ascending order.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <string>

#include "bindings/array_view.hpp"
#include "bindings/gil.hpp"
#include "bindings/parameter.hpp"
#include "bindings/rows.hpp"
#include "engine/row_gradient.hpp"
#include "engine/row_order.hpp"
#include "runtime/subnormals.hpp"
#include "sweep/dispatch.hpp"

namespace schuss::bindings {

class SortedRows {
  public:
    /// rows: an instance of `Rows`, whose indices are read now and never again. order: gets them,
    /// and must stay valid. TypeError or ValueError unless they can be the gradient of the
    /// parameter. Runs no user code.
    SortedRows(py::handle rows, const Name& name, const Parameter& parameter,
               engine::RowOrder& order);

    const Rows& rows() const { return rows_in(object_); }
    const std::string& name() const { return name_; }
    const engine::RowGradient& gradient() const { return gradient_; }
    std::size_t elements() const { return gradient_.count() * gradient_.row; }

    /// A new array in the shape and the compute dtype of the parameter, zero elsewhere.
    py::array dense(const Parameter& parameter) const;

    /// Writes the sum of the values of each distinct row, in the compute dtype. place(k): the
    /// index of the k-th of them among the rows there.
    template <class Place>
    void write_to(std::byte* first, const Parameter& parameter, const Place& place) const {
        const std::size_t row = gradient_.row * numbers::size_of(parameter.compute_dtype());
        run_without_gil(elements(), [&]() noexcept {
            const runtime::SubnormalsAreZero mode;
            for (std::size_t k = 0; k < gradient_.count(); ++k) {
                gradient_.sum(k, 0, gradient_.row, sweep::level(), first + place(k) * row);
            }
        });
    }

  private:
    py::object object_;
    std::string name_;
    ArrayView values_;  // without gaps
    engine::RowGradient gradient_;
};

/// The dtype in which the gradients of a parameter are added up.
py::dtype sum_dtype(const Parameter& parameter);

}  // namespace schuss::bindings
