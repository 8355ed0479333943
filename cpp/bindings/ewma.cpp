// Averages along an axis.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/gil.hpp"
#include "bindings/register.hpp"
#include "data/ewma.hpp"

namespace schuss::bindings {
namespace {

/// out may be values itself; otherwise they share no memory, which Python checks.
void ewma(py::handle values, py::handle out, py::ssize_t axis, double beta, bool bias_correction) {
    const Name name{"ewma", "out"};
    const ArrayView from(values, {"ewma", "values"}), to(out, name);
    const ElementType type = compute_type_of(from, {"ewma", "values"});
    check_writable(to, name);
    check_like(to, name, from, "values");
    std::vector<engine::CopyAxis> axes;
    for (std::size_t i = 0; i < from.ndim(); ++i) {
        axes.push_back({from.shape()[i], from.strides()[i], to.strides()[i]});
    }
    if (type.is_complex()) {  // the components are series of their own
        const auto size = static_cast<std::ptrdiff_t>(numbers::size_of(type.dtype));
        axes.push_back({type.components, size, size});
    }
    const engine::CopyAxis time = axes.at(static_cast<std::size_t>(axis));
    axes.erase(axes.begin() + axis);
    axes.push_back(time);
    check_has_its_memory(from, {"ewma", "values"});
    check_has_its_memory(to, name);
    const ReleaseGil released;
    data::ewma(type.dtype, std::move(axes), from.data(), to.data(), beta, bias_correction);
}

}  // namespace

void register_ewma(py::module_& module) {
    module.def("ewma", &ewma, py::arg("values"), py::arg("out"), py::arg("axis"), py::arg("beta"),
               py::arg("bias_correction"));
    module.def("weight_of", &data::weight_of, py::arg("gain"), py::arg("t"));
}

}  // namespace schuss::bindings
