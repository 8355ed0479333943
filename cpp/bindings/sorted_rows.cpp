#include "bindings/sorted_rows.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "bindings/arrays.hpp"

namespace schuss::bindings {
namespace {

void check_rows(const ArrayView& array, const Name& name, const std::string& array_name) {
    constexpr std::size_t most = engine::RowOrder::most;
    if (array.shape()[0] <= most) return;
    throw py::value_error(name.text() + " is a Rows where " + array_name + " has " +
                          std::to_string(array.shape()[0]) + " rows, expected at most " +
                          std::to_string(most) + " (to_dense() makes an array of it)");
}

void sort(engine::RowOrder& order, const std::vector<std::int64_t>& indices, std::size_t rows) {
    run_without_gil(indices.size(), [&] { order.sort(indices, rows); });
}

}  // namespace

SortedRows::SortedRows(py::handle rows, const Name& name, const Parameter& parameter,
                       engine::RowOrder& order)
    : object_(py::reinterpret_borrow<py::object>(rows)), name_(name.argument) {
    const Rows& given = rows_in(rows);
    const ArrayView& array = parameter.array();
    const ElementType type = given.check_values(name, array, parameter.name());
    check_rows(array, name, parameter.name());
    given.check_in_place(name);
    values_ = given.values();
    const std::size_t alignment = values_.itemsize() / type.components;
    if (!is_c_contiguous(values_, alignment)) {
        values_ = ArrayView(values_.plain().attr("copy")("C"), name);
        given.check_in_place(name);
    }
    const std::size_t count = array.shape()[0];
    sort(order, row_indices(given.indices(), name, array, parameter.name()), count);
    gradient_ = {.values = values_.data(),
                 .dtype = type.dtype,
                 .computed = parameter.compute_dtype(),
                 .row = array.size() / std::max(count, std::size_t{1}) * type.components,
                 .order = &order,
                 .is_sum = given.are_sums()};
}

py::array SortedRows::dense(const Parameter& parameter) const {
    const py::object zeros = py::module_::import("numpy").attr("zeros");
    py::array array = zeros(py::cast(parameter.array().shape()), sum_dtype(parameter));
    write_to(static_cast<std::byte*>(array.mutable_data()), parameter,
             [this](std::size_t k) { return gradient_.index(k); });
    return array;
}

py::dtype sum_dtype(const Parameter& parameter) {
    if (parameter.is_complex()) return parameter.array().dtype();
    return py::dtype(numbers::dtype_name(parameter.compute_dtype()));
}

}  // namespace schuss::bindings
