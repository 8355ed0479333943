#include "rules/registry.hpp"

#include <math.h>

#include <cstring>
#include <stdexcept>
#include <string>

namespace schuss::rules {
namespace {

using enum Extreme;

#include "rules/arithmetic.hpp"
#include "rules/complex.hpp"

#include "rules/bias.hpp"
#include "rules/decay.hpp"
#include "rules/gradient.hpp"
#include "rules/moments.hpp"
#include "rules/rate_only.hpp"
#define SCHUSS_RULE(name, ...)
#include "rules/rules.def"

/// The coefficients before those of the rule.
struct Common {
    GradientTransform::Coefficients<double> gradient;
    WeightDecay::Coefficients<double> decay;
    double fine;
};
static_assert(sizeof(Common) == index::own * sizeof(double));

std::vector<std::string_view> list(const Names& names) {
    std::vector<std::string_view> result;
    for (const char* const* name = names.at; *name != nullptr; ++name) result.emplace_back(*name);
    return result;
}

std::vector<State> list(const States& states) {
    std::vector<State> result;
    for (const State* state = states.at; state->name != nullptr; ++state) result.push_back(*state);
    return result;
}

Rates rates_of(const std::vector<std::string_view>& origins) {
    Rates result;
    std::size_t count = 0;
    for (std::size_t i = 0; i < origins.size(); ++i) {
        if (origins[i] != "lr") continue;
        const bool has_own = i + 1 < origins.size() && origins[i + 1] == "fine";
        const std::size_t fine = has_own ? index::own + i + 1 : index::fine;
        result.at(count++) = {static_cast<std::uint8_t>(index::own + i),
                              static_cast<std::uint8_t>(fine)};
    }
    return result;
}

template <class Rule>
void fill(const double* hyperparameters, double t, Coefficients& coefficients) {
    typename Rule::Hyper hyper;
    std::memcpy(&hyper, hyperparameters, sizeof hyper);
    const auto values = Rule::coefficients(hyper, t);
    static_assert(sizeof(Common) + sizeof values <= sizeof(Coefficients));
    std::memcpy(coefficients.data() + index::own, &values, sizeof values);
}

template <class Rule>
Fall fall(Coefficients& coefficients) {
    typename Rule::template Coefficients<double> values;
    std::memcpy(&values, coefficients.data() + index::own, sizeof values);
    const Fall result = Rule::fall(values);
    std::memcpy(coefficients.data() + index::own, &values, sizeof values);
    return result;
}

template <class Rule>
ZeroUpdates zero_updates() {
    ZeroUpdates result;
    if constexpr (Rule::updates_parameters) {
        std::memcpy(result.widest.data() + index::own, &Rule::widest, sizeof Rule::widest);
        result.widest[index::decay_factor] = Extreme::least;
        result.fall = &fall<Rule>;
        result.keep_states = rules::keeps_states<Rule>;
    }
    return result;
}

template <class Rule, typename T>
void update_row(void* state, double mean_square, void* coefficients) {
    typename Rule::template Coefficients<T> values;
    T* const own = static_cast<T*>(coefficients) + index::own;
    std::memcpy(&values, own, sizeof values);
    Rule::update_row(*static_cast<T*>(state), static_cast<T>(mean_square), values);
    std::memcpy(own, &values, sizeof values);
}

template <class Rule>
std::array<UpdateRow, compute_types> row_updates() {
    constexpr bool has_rows = requires { &Rule::template update_row<float>; };
    if constexpr (has_rows) return {&update_row<Rule, float>, &update_row<Rule, double>};
    return {};
}

template <class Rule>
RuleInfo entry(const char* name) {
    return {name,
            list(Rule::states),
            list(Rule::hyperparameters),
            list(Rule::origins),
            rates_of(list(Rule::origins)),
            zero_updates<Rule>(),
            row_updates<Rule>(),
            &fill<Rule>};
}

}  // namespace

const std::vector<RuleInfo>& registry() {
    static const std::vector<RuleInfo> entries = {
#define SCHUSS_RULE(name, ...) entry<__VA_ARGS__>(#name),
#include "rules/rules.def"
    };
    return entries;
}

std::vector<std::string_view> state_names(const RuleInfo& rule) {
    std::vector<std::string_view> names;
    for (const State& state : rule.states) names.emplace_back(state.name);
    return names;
}

std::size_t find_rule(std::string_view name) {
    const std::vector<RuleInfo>& rules = registry();
    for (std::size_t i = 0; i < rules.size(); ++i) {
        if (name == rules[i].name) return i;
    }
    throw std::invalid_argument("unknown rule " + std::string(name));
}

std::string_view origin(const RuleInfo& rule, std::size_t coefficient) {
    if (coefficient == index::limit) return "clip_value";
    if (coefficient == index::weight_decay || coefficient == index::decay_factor) {
        return "weight_decay";
    }
    return coefficient < index::own ? "" : rule.origins.at(coefficient - index::own);
}

Coefficients coefficients(const RuleInfo& rule, const double* hyperparameters, double weight_decay,
                          double t, double limit) {
    Coefficients result = {};
    // Every rule that weight decay applies to has lr as its first hyperparameter.
    const Common common{
        {1, 1, limit}, WeightDecay::coefficients(weight_decay, hyperparameters[0]), 1};
    std::memcpy(result.data(), &common, sizeof common);
    rule.fill(hyperparameters, t, result);
    return result;
}

}  // namespace schuss::rules
