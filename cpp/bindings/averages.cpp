// Averages along an axis.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/others_may_run.hpp"
#include "bindings/register.hpp"
#include "engine/ewma.hpp"

namespace schuss::bindings {
namespace {

/// out may be values itself; else they must be apart, which is Python's to see to.
void ewma(const py::array& values, const py::array& out, py::ssize_t axis, double beta,
          bool bias_correction) {
    const Name name{"ewma", "out"};
    const numbers::Number number = computed_number_of(values, {"ewma", "values"});
    check_writable(out, name);
    check_like(out, name, values, "values");
    std::vector<engine::CopyAxis> axes;
    for (py::ssize_t i = 0; i < values.ndim(); ++i) {
        const auto size = static_cast<std::size_t>(values.shape(i));
        axes.push_back({size, values.strides(i), out.strides(i)});
    }
    const engine::CopyAxis time = axes.at(static_cast<std::size_t>(axis));
    axes.erase(axes.begin() + axis);
    axes.push_back(time);
    const auto* const from = static_cast<const std::byte*>(values.data());
    auto* const to = static_cast<std::byte*>(const_cast<void*>(out.data()));
    const OthersMayRun others_may_run;
    engine::ewma(number, std::move(axes), from, to, beta, bias_correction);
}

}  // namespace

void register_averages(py::module_& module) {
    module.def("ewma", &ewma, py::arg("values"), py::arg("out"), py::arg("axis"), py::arg("beta"),
               py::arg("bias_correction"));
    module.def("weight_of", &engine::weight_of, py::arg("gain"), py::arg("t"));
}

}  // namespace schuss::bindings
