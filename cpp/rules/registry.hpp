// What the rest of the library may know of every rule: its names, and its coefficients for a step.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "rules/rule.hpp"

namespace schuss::rules {

/// The coefficients of one step, in double, as they are laid out for the loop: the gradient's, the
/// weight decay's, then the rule's.
using Coefficients = std::array<double, max_coefficients>;

/// The places of the coefficients that all rules share, and of the first of the rule's own. fine:
/// what the update is multiplied by; 1 unless the rate is too small for the format.
namespace index {
inline constexpr std::size_t power = 0, scale = 1, limit = 2, weight_decay = 3, keep = 4, fine = 5,
                             own = 6;
}

/// So many steps can be counted, exactly in double too.
inline constexpr std::int64_t max_steps = (std::int64_t{1} << 53) - 1;

/// One entry of rules.def. Its place in the book is its place in every level's table.
struct RuleInfo {
    std::string_view name;
    std::vector<std::string_view> states;
    std::vector<std::string_view> hyperparameters;
    std::vector<std::string_view> origins;
    void (*fill)(const double* hyperparameters, double t, Coefficients& coefficients);
};

const std::vector<RuleInfo>& registry();

/// The index of a rule in the book; throws std::invalid_argument if there is none.
std::size_t find_rule(std::string_view name);

/// The hyperparameter that decides whether a format can hold a coefficient, or "".
std::string_view origin(const RuleInfo& rule, std::size_t place);

/// Where the rate lies among the coefficients; 0 if the rule has none.
std::size_t lr_index(const RuleInfo& rule);

/// Of gradients that are not scaled. hyperparameters: in the order of the entry's names; limit: how
/// far from 0 the elements of gradients may be.
Coefficients coefficients(const RuleInfo& rule, const double* hyperparameters, double weight_decay,
                          double t, double limit);

}  // namespace schuss::rules
