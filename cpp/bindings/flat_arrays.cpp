// What sharded optimizers compute from parts of gradients: conversions to fewer bits and back, sums
// in a fixed order, and sums of squares.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/flat_array.hpp"
#include "bindings/gil.hpp"
#include "bindings/overlap.hpp"
#include "bindings/register.hpp"
#include "data/array_sum.hpp"
#include "data/conversion.hpp"
#include "data/sharing.hpp"
#include "engine/gradient_stats.hpp"
#include "sweep/dispatch.hpp"

namespace schuss::bindings {
namespace {

std::string text(py::handle object) {
    return py::str(object).cast<std::string>();
}

void check_size(const FlatArray& array, const Name& name, const FlatArray& out) {
    if (array.view.size() == out.view.size()) return;
    throw py::value_error(name.text() + " has " + std::to_string(array.view.size()) +
                          " elements, expected " + std::to_string(out.view.size()) +
                          " (the number of elements of out)");
}

[[noreturn]] void refuse_dtypes(const FlatArray& array, const Name& name, const FlatArray& out,
                                const char* expected) {
    throw py::type_error(name.text() + " has dtype " + text(array.view.dtype()) + " where out is " +
                         text(out.view.dtype()) + ", expected " + expected);
}

void convert(py::handle source, py::handle out) {
    const Name source_name{"convert", "source"}, out_name{"convert", "out"};
    const FlatArray from = flat_array(source, source_name), to = flat_array(out, out_name, true);
    check_size(from, source_name, to);
    if (from.type.components != to.type.components ||
        !data::can_convert(from.dtype(), to.dtype())) {
        refuse_dtypes(from, source_name, to,
                      "both to be real or both complex, a step between 16 and 32 bits or between "
                      "32 and 64 bits, or from 16 to 64 bits");
    }
    check_disjoint("convert", {{to.view, "out"}, {from.view, "source", false}});
    run_without_gil(from.elements(), [&]() noexcept {
        data::convert(from.dtype(), from.data(), to.dtype(), to.data(), from.elements());
    });
}

/// The weights of arrays: 1 if there are none.
std::vector<double> checked_weights(const std::optional<std::vector<double>>& weights,
                                    std::size_t arrays) {
    if (!weights) return std::vector<double>(arrays, 1.0);
    if (weights->size() != arrays) {
        throw py::value_error("add: weights has " + std::to_string(weights->size()) +
                              " numbers, expected " + std::to_string(arrays) +
                              " (the number of arrays)");
    }
    for (const double weight : *weights) {
        if (!std::isfinite(weight)) {
            throw py::value_error("add: weights has " + text(py::float_(weight)) +
                                  ", expected finite numbers");
        }
    }
    return *weights;
}

bool is_computed(const FlatArray& array) {
    return numbers::compute_dtype(array.dtype()) == array.dtype();
}

/// The arrays of a call, each "arrays[0]" and so on in messages.
std::vector<FlatArray> flat_arrays(const std::vector<py::object>& arrays, const std::string& call) {
    std::vector<FlatArray> result;
    result.reserve(arrays.size());
    for (const py::object& array : arrays) {
        const std::string index = std::to_string(result.size());
        result.push_back(flat_array(array, {call, "arrays[" + index + "]"}));
    }
    return result;
}

void add(const std::vector<py::object>& arrays, py::handle out,
         const std::optional<std::vector<double>>& given_weights) {
    const FlatArray sum = flat_array(out, {"add", "out"}, true);
    const std::vector<FlatArray> terms = flat_arrays(arrays, "add");
    const std::vector<double> weights = checked_weights(given_weights, terms.size());
    if (!is_computed(sum)) {
        throw py::type_error("add: out has dtype " + text(sum.view.dtype()) +
                             ", expected float32, float64, complex64 or complex128");
    }
    if (terms.empty()) throw py::value_error("add: arrays is empty, expected at least one array");
    std::vector<data::ArraySum::Term> added;
    std::vector<NamedArray> named = {{sum.view, "out"}};
    for (std::size_t i = 0; i < terms.size(); ++i) {
        const FlatArray& term = terms[i];
        const Name name{"add", "arrays[" + std::to_string(i) + "]"};
        check_size(term, name, sum);
        if (term.type != sum.type && (is_computed(term) || sum.type.is_complex())) {
            refuse_dtypes(term, name, sum, "its dtype, or float16 or bfloat16 for a real array");
        }
        added.push_back({term.dtype(), term.data(), weights[i]});
        if (!same_memory(term.view, sum.view)) {
            named.push_back({term.view, name.argument, false});
        }
    }
    check_disjoint("add", named);
    const data::ArraySum work(added, sum.dtype(), sum.data(), sum.elements());
    run_without_gil(sum.elements() * terms.size(), [&]() noexcept { work.run(); });
}

py::tuple square_sums(const std::vector<py::object>& arrays, int power) {
    const std::vector<FlatArray> views = flat_arrays(arrays, "square_sums");
    std::vector<engine::MemoryOrder> orders;
    std::vector<engine::GradientStats::Gradient> gradients;
    orders.reserve(views.size());
    std::size_t elements = 0, bytes = 0;
    for (const FlatArray& array : views) {
        const engine::Operand operand{.role = engine::Role::gradient,
                                      .dtype = array.dtype(),
                                      .data = array.data(),
                                      .strides = array.view.strides().data(),
                                      .components = array.type.components};
        orders.emplace_back(array.view.shape(), operand, operand);
        gradients.push_back({array.dtype(), &orders.back(), array.data()});
        elements += array.elements();
        bytes += array.view.size() * array.view.itemsize();
    }
    engine::GradientStats statistics;
    const data::Sharing sharing = data::sharing_of(bytes);
    statistics.lay_out(std::move(gradients));
    statistics.prepare(sharing.threads);
    run_without_gil(elements, [&]() noexcept {
        statistics.sum_blocks(sweep::level(), power, sharing.wake_workers, false);
    });
    const std::vector<double>& sums = statistics.block_sums();
    const std::size_t first = statistics.first_nonfinite();
    return py::make_tuple(
        py::array_t<double>(static_cast<py::ssize_t>(sums.size()), sums.data()),
        first < views.size() ? static_cast<std::int64_t>(first) : std::int64_t{-1});
}

}  // namespace

void register_flat_arrays(py::module_& module) {
    module.def("convert", &convert, py::arg("source"), py::arg("out"));
    module.def("add", &add, py::arg("arrays"), py::arg("out"), py::arg("weights") = py::none());
    module.def("square_sums", &square_sums, py::arg("arrays"), py::arg("power") = 0);
}

}  // namespace schuss::bindings
