// What the benchmarks compare with: the loop that moves a step's memory and only adds.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/register.hpp"
#include "engine/cpu.hpp"
#include "engine/plan.hpp"
#include "engine/subnormals.hpp"
#include "rules/book.hpp"

namespace schuss::bindings {
namespace {

/// Adds grad to param and to each state, repeats times: straight through the loop of the level in
/// use, with neither plan nor tiles.
void additions(int repeats, const py::array& param, const py::array& grad, const py::args& states) {
    const std::string call = "additions";
    std::vector<py::array> arrays = {param, grad};
    for (const py::handle state : states) arrays.push_back(as_array(state, {call, "state"}));
    check_writable(param, {call, "param"});
    std::vector<void*> operands;
    for (const py::array& array : arrays) {
        check_like(array, {call, "array"}, param, "param");
        if ((array.flags() & py::array::c_style) == 0) {
            throw py::value_error(call + ": expected contiguous arrays");
        }
        operands.push_back(const_cast<void*>(array.data()));
    }
    const std::size_t rule = rules::find("additions_" + std::to_string(states.size()));
    const auto kernel =
        engine::level().rules[rule].of(rules::Decay::none, number_of(param, {call, "param"}));
    const engine::Coefficients coefficients{rules::Coefficients{}};
    const void* const values = coefficients.as(number_of(param, {call, "param"}));
    const engine::SubnormalsAreZero mode;
    const auto size = static_cast<std::size_t>(param.size());
    for (int i = 0; i < repeats; ++i) kernel(operands.data(), size, values);
}

}  // namespace

void register_yardstick(py::module_& module) {
    module.def("additions", &additions, py::arg("repeats"), py::arg("param"), py::arg("grad"));
}

}  // namespace schuss::bindings
