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
using Coefficients = std::array<double, 16>;

/// So many steps can be counted, exactly in double too.
inline constexpr std::int64_t most_steps = (std::int64_t{1} << 53) - 1;

/// One entry of rules.def. Its place in the book is its place in every level's table.
struct Entry {
    std::string_view name;
    std::vector<std::string_view> states;
    std::vector<std::string_view> hyperparameters;
    void (*fill)(const double* hyperparameters, double t, Coefficients& coefficients);
};

const std::vector<Entry>& book();

/// The index of a rule in the book; throws std::invalid_argument if there is none.
std::size_t find(std::string_view name);

/// What becomes of the gradients: multiplied, and then no farther from 0 than the limit.
struct Treatment {
    double scale, limit;
};

/// hyperparameters: in the order of the entry's names.
Coefficients coefficients(const Entry& rule, const double* hyperparameters, double weight_decay,
                          double t, const Treatment& treatment);

}  // namespace schuss::rules
