// The order of examples, and their copies in mini-batches.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>

#include "bindings/gil.hpp"
#include "bindings/register.hpp"
#include "data/gather.hpp"
#include "data/shuffle.hpp"

namespace schuss::bindings {
namespace {

namespace py = pybind11;

py::array_t<std::int64_t> shuffled(std::size_t count, std::uint64_t seed) {
    py::array_t<std::int64_t> order(static_cast<py::ssize_t>(count));
    std::int64_t* const data = order.mutable_data();
    const ReleaseGil released;
    data::shuffle(data, count, seed);
    return order;
}

/// Copies examples, which are along the first axis of the array. out is C-contiguous, has an
/// example for each index and the dtype of the array, which has no object references. Python checks
/// that.
void gather(const py::array& array, const py::array_t<std::int64_t, py::array::c_style>& indices,
            py::array& out) {
    data::Examples examples{static_cast<const std::byte*>(array.data()),
                            array.strides(0),
                            static_cast<std::size_t>(array.itemsize()),
                            {}};
    for (py::ssize_t i = 1; i < array.ndim(); ++i) {
        if (array.shape(i) == 0) return;
        examples.axes.push_back({static_cast<std::size_t>(array.shape(i)), array.strides(i), 0});
    }
    auto* const to = static_cast<std::byte*>(out.mutable_data());
    const std::int64_t* const first = indices.data();
    const auto count = static_cast<std::size_t>(indices.size());
    const ReleaseGil released;
    data::gather(std::move(examples), first, count, to);
}

}  // namespace

void register_batches(py::module_& module) {
    module.def("shuffled", &shuffled, py::arg("count"), py::arg("seed"));
    module.def("gather", &gather, py::arg("array"), py::arg("indices"), py::arg("out"));
}

}  // namespace schuss::bindings
