// The options of a step, as Python gives them.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>

#include "bindings/register.hpp"
#include "engine/step.hpp"

namespace schuss::bindings {
namespace {

namespace py = pybind11;

engine::Nonfinite nonfinite_called(const std::string& name) {
    if (name == "propagate") return engine::Nonfinite::propagate;
    if (name == "raise") return engine::Nonfinite::raise;
    if (name == "skip") return engine::Nonfinite::skip;
    throw py::value_error("nonfinite is '" + name +
                          "', expected one of 'propagate', 'raise', 'skip'");
}

engine::StepOptions make_options(std::optional<double> clip_norm, std::optional<double> clip_value,
                                 const std::string& nonfinite, bool clear_grads,
                                 std::optional<double> average, bool average_bias_correction,
                                 std::uint64_t seed, bool track_norms) {
    return {.clip_norm = clip_norm.value_or(engine::no_limit),
            .clip_value = clip_value.value_or(engine::no_limit),
            .nonfinite = nonfinite_called(nonfinite),
            .clear_grads = clear_grads,
            .average = average.value_or(0),
            .average_from_zero = average_bias_correction,
            .track_norms = track_norms,
            .seed = seed};
}

}  // namespace

void register_options(py::module_& module) {
    py::class_<engine::StepOptions>(module, "StepOptions")
        .def(py::init(&make_options), py::arg("clip_norm") = py::none(),
             py::arg("clip_value") = py::none(), py::arg("nonfinite") = "propagate",
             py::arg("clear_grads") = false, py::arg("average") = py::none(),
             py::arg("average_bias_correction") = false, py::arg("seed") = 0,
             py::arg("track_norms") = false);
}

}  // namespace schuss::bindings
