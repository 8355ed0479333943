// The registry of rules: their names, states and hyperparameters, and their coefficients for a
// step.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "rules/rule.hpp"

namespace schuss::rules {

/// The coefficients of one step in double, in the order in which the loop reads them: those of the
/// gradient, those of the weight decay, `fine`, then those of the rule.
using Coefficients = std::array<double, max_coefficients>;

/// The indices of the coefficients that all rules have, and of the first that belongs to the rule.
/// The update is multiplied by `fine`, which is 1 unless the learning rate is too small for the
/// number format.
namespace index {
inline constexpr std::size_t power = 0, scale = 1, limit = 2, weight_decay = 3, decay_factor = 4,
                             fine = 5, own = 6;
}

/// The largest step count, which double still holds exactly.
inline constexpr std::int64_t max_steps = (std::int64_t{1} << 53) - 1;

/// The indices of a coefficient that lr may make too small for a number format, and of the factor
/// that completes it then. The index 0 stands for none.
struct Rate {
    std::uint8_t index = 0, fine = 0;
};
using Rates = std::array<Rate, 2>;

/// What bounds the updates of several steps with zero gradients. fall: how they fall, for the
/// widest coefficients, of which it may lower those whose least value is the widest. It is null for
/// a rule that updates no parameters. keep_states: whether they never change the states.
struct ZeroUpdates {
    std::array<Extreme, max_coefficients> widest = {};
    Fall (*fall)(Coefficients& coefficients) = nullptr;
    bool keep_states = false;
};

/// Updates the number that a rule of rows keeps for a row, and completes the coefficients, which
/// are those of a step in the compute type of the number.
using UpdateRow = void (*)(void* state, double mean_square, void* coefficients);

/// The dtypes that updates are computed in: float32 and float64.
inline constexpr std::size_t compute_types = 2;

/// One line of rules.def. Its index in the registry is its index in every level's table.
struct RuleInfo {
    std::string_view name;
    std::vector<State> states;
    std::vector<std::string_view> hyperparameters;
    std::vector<std::string_view> origins;
    Rates rates;
    ZeroUpdates zero_updates;
    std::array<UpdateRow, compute_types> update_row;  // nullptr unless it is a rule of rows
    void (*fill)(const double* hyperparameters, double t, Coefficients& coefficients);
};

const std::vector<RuleInfo>& registry();

std::vector<std::string_view> state_names(const RuleInfo& rule);

/// The index of a rule in the registry; throws std::invalid_argument if the name is unknown.
std::size_t find_rule(std::string_view name);

/// The hyperparameter that decides whether a number format can hold a coefficient, "a+b" if the sum
/// of two decides, or "".
std::string_view origin(const RuleInfo& rule, std::size_t coefficient);

/// The coefficients of step t, with a gradient scale of 1. `hyperparameters` has the order of the
/// rule's names; `limit` bounds the magnitude of the gradient's elements.
Coefficients coefficients(const RuleInfo& rule, const double* hyperparameters, double weight_decay,
                          double t, double limit);

}  // namespace schuss::rules
