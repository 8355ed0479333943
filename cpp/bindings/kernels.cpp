// One step of one parameter, whose states the caller keeps: `schuss.kernels`.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/formula.hpp"
#include "bindings/gil.hpp"
#include "bindings/overlap.hpp"
#include "bindings/parameter.hpp"
#include "bindings/register.hpp"
#include "engine/plan.hpp"

namespace schuss::bindings {
namespace {

void update(const std::string& call, const engine::Formula& formula, std::int64_t t, double scale,
            double clip_value, py::handle param, py::handle grad, const py::args& states) {
    const rules::RuleInfo& rule = formula.rule();
    if (states.size() != rule.states.size()) {
        throw py::type_error(call + ": a step of " + std::string(rule.name) + " takes " +
                             std::to_string(rule.states.size()) + " states");
    }
    // The conversions come first, since they may run user code. The checks after them would not
    // hold if user code ran again.
    const ArrayView gradient(grad, {call, "grad"});
    std::vector<NamedArray> arrays = {{ArrayView(param, {call, "param"}), "param"}};
    for (const auto state : rules::state_names(rule)) {
        std::string name(state);
        const ArrayView array(states[arrays.size() - 1], {call, name});
        arrays.push_back({array, std::move(name)});
    }
    for (const NamedArray& each : arrays) check_shows_its_memory(each.array, {call, each.argument});
    Parameter parameter(arrays[0].array, {call, "param"});
    parameter.check_limits(formula, clip_value, call);
    std::vector<Parameter::AuxArray> aux_arrays;
    for (std::size_t i = 1; i < arrays.size(); ++i) {
        aux_arrays.push_back({engine::Role::state, arrays[i].array, arrays[i].argument,
                              rule.states[i - 1].nonnegative, formula.is_row_wise()});
    }
    // Not in bfloat16, since there is no seed for stochastic rounding.
    parameter.set_aux_arrays(std::move(aux_arrays), call, DtypeRule::compute);
    engine::Plan plan;
    plan.items.push_back(parameter.item(gradient, {call, "grad"}, 0));
    arrays.push_back({gradient, "grad", false});
    check_disjoint(call, arrays);
    for (const NamedArray& each : arrays) check_has_its_memory(each.array, {call, each.argument});
    plan.prepare();
    engine::Update step = formula.update(t, clip_value);
    refuse_misfit(formula.first_misfit(step, clip_value, parameter.compute_dtype()), call, false);
    step.set_scale(numbers::Wide(scale));
    run_without_gil(plan.elements(), [&]() noexcept { plan.run({.groups = &step}); });
}

}  // namespace

void register_kernels(py::module_& module) {
    module.def("update", &update, py::arg("call"), py::arg("formula"), py::arg("t"),
               py::arg("scale"), py::arg("clip_value"), py::arg("param"), py::arg("grad"));
}

}  // namespace schuss::bindings
