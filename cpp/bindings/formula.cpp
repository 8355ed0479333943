#include "bindings/formula.hpp"

#include <pybind11/stl.h>

#include <stdexcept>
#include <vector>

#include "bindings/register.hpp"
#include "rules/registry.hpp"

namespace schuss::bindings {
namespace {

rules::Decay decay_called(const std::string& name) {
    if (name == "coupled") return rules::Decay::coupled;
    if (name == "decoupled") return rules::Decay::decoupled;
    throw std::invalid_argument("unknown weight decay " + name);
}

std::string text(double value) {
    return py::repr(py::float_(value)).cast<std::string>();
}

std::vector<std::string> state_names(const std::string& rule) {
    const auto names = rules::state_names(rules::registry()[rules::find_rule(rule)]);
    return {names.begin(), names.end()};
}

/// The names of the states whose elements are never less than 0.
std::vector<std::string> nonnegative_states(const std::string& rule) {
    std::vector<std::string> names;
    for (const rules::State& state : rules::registry()[rules::find_rule(rule)].states) {
        if (state.nonnegative) names.emplace_back(state.name);
    }
    return names;
}

}  // namespace

engine::Formula make_formula(const std::string& rule, const py::dict& values, double per_step,
                             const std::string& decay, double weight_decay, bool maximize,
                             const std::optional<Limits>& bounds, const std::string& row_rule) {
    const auto& names = rules::registry()[rules::find_rule(rule)].hyperparameters;
    std::vector<double> others;
    for (std::size_t i = 1; i < names.size(); ++i) {
        others.push_back(values[names[i].data()].cast<double>());
    }
    const auto [low, high] = bounds.value_or(Limits{});
    const engine::FormulaOptions options{
        .decay = decay_called(decay),
        .weight_decay = weight_decay,
        .maximize = maximize,
        .bounds = {low.value_or(-engine::no_limit), high.value_or(engine::no_limit)},
        .row_rule = row_rule};
    return {rule, per_step, others, options};
}

void refuse_misfit(const std::optional<engine::Formula::Misfit>& misfit, const std::string& call,
                   bool grouped) {
    if (!misfit) return;
    std::string name(misfit->hyperparameter);
    if (grouped) name = "param_groups[" + std::to_string(misfit->group) + "]['" + name + "']";
    const std::string derived = misfit->value == misfit->coefficient
                                    ? ""
                                    : ", which gives the coefficient " + text(misfit->coefficient);
    const std::string range = misfit->dtype == numbers::DType::float32
                                  ? "1.2e-38 to 3.4e+38, as float32 holds (or use float64)"
                                  : "2.3e-308 to 1.7e+308, as float64 holds";
    throw py::value_error(call + ": " + name + " is " + text(misfit->value) + derived +
                          ", expected 0 or a magnitude from " + range);
}

void register_formula(py::module_& module) {
    py::class_<engine::Formula>(module, "Formula")
        .def(py::init(&make_formula), py::arg("rule"), py::arg("values") = py::dict(),
             py::arg("per_step") = 0.0, py::arg("decay") = "decoupled",
             py::arg("weight_decay") = 0.0, py::arg("maximize") = false,
             py::arg("bounds") = py::none(), py::arg("row_rule") = "")
        .def_property_readonly("per_step", &engine::Formula::per_step);
    module.def("states", &state_names, py::arg("rule"));
    module.def("nonnegative_states", &nonnegative_states, py::arg("rule"));
}

}  // namespace schuss::bindings
