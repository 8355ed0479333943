#include "bindings/row_sums.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>

namespace schuss::bindings {
namespace {

/// A new array of rows of a parameter.
py::array new_rows(const char* maker, std::size_t count, const Parameter& parameter) {
    std::vector<std::size_t> shape = parameter.array().shape();
    shape[0] = count;
    const py::module_ numpy = py::module_::import("numpy");
    return numpy.attr(maker)(py::tuple(py::cast(shape)), sum_dtype(parameter));
}

std::byte* first_of(const py::array& array) {
    return static_cast<std::byte*>(const_cast<void*>(array.data()));
}

using Indices = std::vector<std::int64_t>;

/// The places of indices among others. Both ascend, and the others have them all.
std::vector<std::size_t> places_among(const Indices& others, const Indices& indices) {
    std::vector<std::size_t> places;
    places.reserve(indices.size());
    std::size_t place = 0;
    for (const std::int64_t index : indices) {
        while (others[place] != index) ++place;
        places.push_back(place);
    }
    return places;
}

/// The item of an accumulator that adds numbers to others, both contiguous.
engine::Item item_of(numbers::DType dtype, std::size_t elements, std::byte* sum,
                     std::byte* gradient) {
    const auto stride = static_cast<std::ptrdiff_t>(numbers::size_of(dtype));
    return {0,
            {elements},
            {{engine::Role::parameter, dtype, sum, &stride},
             {engine::Role::gradient, dtype, gradient, &stride}}};
}

}  // namespace

py::array RowSums::dense(std::size_t parameter) const {
    const Rows& rows = rows_in(sums_[parameter]);
    const Parameter& own = parameters_[parameter];
    const py::array array = new_rows("zeros", own.array().shape()[0], own);
    array[rows.indices().array()] = rows.values().array();
    return array;
}

void RowSums::Addition::add(std::size_t parameter, const SortedRows& rows) {
    const Parameter& own = sums_.parameters_[parameter];
    const engine::RowGradient& gradient = rows.gradient();
    Indices added(gradient.count()), known, all;
    for (std::size_t k = 0; k < added.size(); ++k) {
        added[k] = static_cast<std::int64_t>(gradient.index(k));
    }
    const bool is_first = !sums_.has(parameter);
    if (!is_first) {
        const Rows& sum = rows_in(sums_.rows(parameter));
        const auto* const first = reinterpret_cast<const std::int64_t*>(sum.indices().data());
        known.assign(first, first + sum.size());
    }
    std::set_union(known.begin(), known.end(), added.begin(), added.end(), std::back_inserter(all));

    // Rows that one of them lacks are zero there, as in arrays of all rows.
    const char* const maker = is_first ? "empty" : "zeros";
    const py::array sum = new_rows(maker, all.size(), own), next = new_rows(maker, all.size(), own);
    const numbers::DType dtype = own.compute_dtype();
    const std::size_t bytes = gradient.row * numbers::size_of(dtype);
    if (!is_first) {
        const std::byte* from = rows_in(sums_.rows(parameter)).values().data();
        for (const std::size_t place : places_among(all, known)) {
            std::memcpy(first_of(sum) + place * bytes, from, bytes);
            from += bytes;
        }
    }
    const std::vector<std::size_t> places = places_among(all, added);
    rows.write_to(first_of(next), own, [&places](std::size_t k) { return places[k]; });
    engine::Plan& plan = accumulator_.plan;
    plan.items.push_back(item_of(dtype, all.size() * gradient.row, first_of(sum), first_of(next)));
    accumulator_.set_has(plan.items.size() - 1, !is_first);
    gradients_.push_back(next);
    const py::array_t<std::int64_t> indices(static_cast<py::ssize_t>(all.size()), all.data());
    // A negative scale makes negative zeros, which a step adds to +0.
    const bool has_negative_zeros = std::signbit(scale_);
    results_.emplace_back(
        parameter, py::cast(has_negative_zeros ? Rows(indices, sum) : Rows::of_sums(indices, sum)));
}

void RowSums::Addition::run(RowSums& sums) noexcept {
    if (!accumulator_.plan.items.empty()) accumulator_.run(scale_, false);
    for (auto& [parameter, result] : results_) std::swap(sums.sums_[parameter], result);
}

void RowSums::drop() noexcept {
    for (py::object& sum : sums_) const py::object dropped = std::move(sum);
}

int RowSums::traverse(visitproc visit, void* arg) const {
    for (const py::object& sum : sums_) Py_VISIT(sum.ptr());
    return 0;
}

}  // namespace schuss::bindings
