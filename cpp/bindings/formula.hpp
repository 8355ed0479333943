// A rule with its hyperparameters, as Python gives it, and the message for one that does not fit.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <utility>

#include "engine/formula.hpp"

namespace schuss::bindings {

namespace py = pybind11;

/// The lowest and the highest value of a parameter, each if there is one.
using Limits = std::pair<std::optional<double>, std::optional<double>>;

/// values: the hyperparameters by name, without the one that each step is given. row_rule: the rule
/// of rows of several elements; "" if the rule keeps its states for each element. ValueError for an
/// unknown rule or decay, KeyError for a hyperparameter that is missing.
engine::Formula make_formula(const std::string& rule, const py::dict& values, double per_step,
                             const std::string& decay, double weight_decay, bool maximize,
                             const std::optional<Limits>& bounds, const std::string& row_rule);

/// ValueError if there is a misfit. grouped: whether there are several groups.
void refuse_misfit(const std::optional<engine::Formula::Misfit>& misfit, const std::string& call,
                   bool grouped);

}  // namespace schuss::bindings
