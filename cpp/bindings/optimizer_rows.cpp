// What an optimizer does for rows that have missed steps.

#include <limits>
#include <string>
#include <vector>

#include "bindings/gil.hpp"
#include "bindings/optimizer.hpp"
#include "bindings/rows.hpp"
#include "data/gather.hpp"

namespace schuss::bindings {
namespace {

/// A new array for rows: with the axes of the indices, and then those of a row.
py::array new_rows(const ArrayView& indices, const ArrayView& parameter) {
    std::vector<std::size_t> shape = indices.shape();
    shape.insert(shape.end(), parameter.shape().begin() + 1, parameter.shape().end());
    return {parameter.dtype(), shape};
}

/// Copies rows of a parameter one after the other.
void gather(const ArrayView& parameter, const std::vector<std::int64_t>& indices, std::byte* to) {
    data::Examples examples{parameter.data(), parameter.strides()[0], parameter.itemsize(), {}};
    for (std::size_t axis = 1; axis < parameter.ndim(); ++axis) {
        examples.axes.push_back({parameter.shape()[axis], parameter.strides()[axis], 0});
    }
    data::gather(std::move(examples), indices.data(), indices.size(), to);
}

}  // namespace

std::vector<std::size_t> Optimizer::pending() const {
    std::vector<std::size_t> result;
    if (!step_.rows.are_pending()) return result;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
        if (step_.rows.are_pending(i)) result.push_back(i);
    }
    return result;
}

void Optimizer::flush() {
    const std::vector<std::size_t> pending = this->pending();
    if (pending.empty()) return;
    for (const std::size_t i : pending) gradients_.check_parameter(i, call_ + ".flush");
    step_.rows.prepare();
    run_without_gil(std::numeric_limits<std::size_t>::max(),
                    [&]() noexcept { step_.flush_rows(); });
}

py::object Optimizer::rows(py::handle indices, const std::string& call) {
    const BusyGuard guard(busy_, call, call_);
    std::vector<py::object> leaves;
    tree_.flatten(indices, call, "indices", leaves, nullptr, Tree::Gaps::allowed);
    const auto name = [&](std::size_t i) { return Name{call, tree_.name("indices", i)}; };
    struct Read {
        std::size_t parameter;
        ArrayView given;
        py::array out;
        std::vector<std::int64_t> indices = {};
        engine::RowOrder* order = nullptr;  // of parameters that have rows to bring up to date
    };
    std::vector<Read> reads;
    py::list result;
    for (std::size_t i = 0; i < leaves.size(); ++i) {
        if (leaves[i].is_none()) {
            result.append(py::none());
            continue;
        }
        const ArrayView& parameter = parameters_[i].array();
        Read read{i, ArrayView(leaves[i], name(i)), py::array()};
        if (parameter.ndim() == 0) {
            throw py::value_error(name(i).text() + " is given where " + parameters_[i].name() +
                                  " has no axes, expected None");
        }
        read.out = new_rows(read.given, parameter);
        result.append(read.out);
        reads.push_back(std::move(read));
    }
    const py::object rows = tree_.unflatten(result);
    check_params(call);
    // No user code runs below, unless this raises.
    std::size_t elements = 0;
    for (Read& read : reads) {
        const Parameter& parameter = parameters_[read.parameter];
        gradients_.check_parameter(read.parameter, call);
        check_has_its_memory(read.given, name(read.parameter));
        read.indices =
            row_indices(read.given, name(read.parameter), parameter.array(), parameter.name());
        elements += static_cast<std::size_t>(read.out.size());
        if (step_.rows.are_pending(read.parameter)) read.order = &rows_->order(read.parameter);
    }
    step_.rows.prepare();
    const ReleaseGilFor released(elements);
    for (const Read& read : reads) {
        if (read.order != nullptr) {
            const runtime::ForkGuard no_fork;
            read.order->sort(read.indices, parameters_[read.parameter].array().shape()[0]);
            step_.catch_up(read.parameter, *read.order);
        }
        gather(parameters_[read.parameter].array(), read.indices,
               static_cast<std::byte*>(const_cast<void*>(read.out.data())));
    }
    return rows;
}

}  // namespace schuss::bindings
