// The names that modules still use for what is now `_core.Tree` and `_core.Optimizer`.
// until all callers use Tree

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/formula.hpp"
#include "bindings/optimizer.hpp"
#include "bindings/register.hpp"

namespace schuss::bindings {
namespace {

using Lists = std::vector<AuxArrays::List>;
using OldArrays = std::tuple<Lists, std::optional<AuxArrays::List>, std::optional<AuxArrays::List>>;
using OldFormula = std::tuple<std::string, std::string, py::dict>;

/// The rate is in the dict of values, as is the weight decay.
void configure(Optimizer& optimizer, const std::vector<OldFormula>& groups,
               const std::vector<std::size_t>& members, const py::dict& options,
               const std::optional<OldArrays>& companions) {
    std::vector<engine::Formula> formulas;
    for (const auto& [rule, decay, values] : groups) {
        const auto& names = rules::registry()[rules::find_rule(rule)].hyperparameters;
        formulas.push_back(make_formula(rule, values, values[names[0].data()].cast<double>(), decay,
                                        values["weight_decay"].cast<double>()));
    }
    const py::object make_options = py::type::of<engine::StepOptions>();
    const py::object made = make_options(**options);
    std::optional<AuxArrays> arrays;
    if (companions) {
        const auto& [states, averages, copies] = *companions;
        arrays.emplace(AuxArrays{{}, averages, copies});
        for (std::size_t i = 0; i < states.size(); ++i) {
            arrays->states.emplace_back(rules::state_names(formulas.at(0).rule()).at(i), states[i]);
        }
    }
    optimizer.configure(formulas, members, made.cast<const engine::StepOptions&>(),
                        arrays ? &*arrays : nullptr);
}

py::object map_arrays(const py::function& function, py::handle structure, const std::string& call,
                      const std::string& argument, bool written) {
    const Tree tree =
        written ? Tree::kept(structure, call, argument) : Tree(structure, call, argument);
    py::list results;
    for (const py::handle array : tree.arrays()) results.append(function(array));
    return tree.unflatten(results);
}

}  // namespace

void register_old_names(py::module_& module, py::class_<Optimizer>& optimizer) {
    const auto tree_of = [](const py::object& self) { return self.attr("tree"); };
    optimizer
        .def("configure", &configure, py::arg("formulas"), py::arg("members"), py::arg("options"),
             py::arg("companions"))
        .def("turn", &Optimizer::busy, py::arg("call"), py::arg("changes") = false)
        .def(
            "leaves",
            [=](const py::object& self, py::handle other, const std::string& call,
                const std::string& argument) {
                return tree_of(self).attr("flatten")(other, call, argument);
            },
            py::arg("other"), py::arg("call"), py::arg("argument"))
        .def(
            "flatten",
            [=](const py::object& self, py::handle other, const std::string& call,
                const std::string& argument, const py::object& like, const std::string& like_name) {
                return tree_of(self).attr("flatten_arrays")(other, call, argument, like, like_name);
            },
            py::arg("other"), py::arg("call"), py::arg("argument"), py::arg("like") = py::none(),
            py::arg("like_name") = "")
        .def(
            "unflatten",
            [=](const py::object& self, const py::list& leaves) {
                return tree_of(self).attr("unflatten")(leaves);
            },
            py::arg("leaves"));
    module.attr("Plan") = optimizer;
    module.def("map_arrays", &map_arrays, py::arg("function"), py::arg("structure"),
               py::arg("call"), py::arg("argument"), py::arg("written") = false);
}

}  // namespace schuss::bindings
