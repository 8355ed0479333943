#include "rules/book.hpp"

#include <math.h>

#include <cstring>
#include <stdexcept>
#include <string>

namespace schuss::rules {
namespace {

#include "rules/arithmetic.hpp"
#include "rules/decay.hpp"
#include "rules/gradient.hpp"
#include "rules/rate_only.hpp"
#define SCHUSS_RULE(name, ...)
#include "rules/rules.def"

/// What stands before the rule's own.
struct Common {
    Gradient::Coefficients<double> gradient;
    WeightDecay::Coefficients<double> decay;
    double fine;
};
static_assert(sizeof(Common) == place::own * sizeof(double));

std::vector<std::string_view> list(const Names& names) {
    std::vector<std::string_view> result;
    for (const char* const* name = names.at; *name != nullptr; ++name) result.emplace_back(*name);
    return result;
}

template <class Rule>
void fill(const double* hyperparameters, double t, Coefficients& coefficients) {
    typename Rule::Hyper hyper;
    std::memcpy(&hyper, hyperparameters, sizeof hyper);
    const auto values = Rule::coefficients(hyper, t);
    static_assert(sizeof(Common) + sizeof values <= sizeof(Coefficients));
    std::memcpy(coefficients.data() + place::own, &values, sizeof values);
}

template <class Rule>
Entry entry(const char* name) {
    return {name, list(Rule::states), list(Rule::hyperparameters), list(Rule::origins),
            &fill<Rule>};
}

}  // namespace

const std::vector<Entry>& book() {
    static const std::vector<Entry> entries = {
#define SCHUSS_RULE(name, ...) entry<__VA_ARGS__>(#name),
#include "rules/rules.def"
    };
    return entries;
}

std::size_t find(std::string_view name) {
    for (std::size_t i = 0; i < book().size(); ++i) {
        if (name == book()[i].name) return i;
    }
    throw std::invalid_argument("no rule is called " + std::string(name));
}

std::string_view origin(const Entry& rule, std::size_t place) {
    if (place == place::limit) return "clip_value";
    if (place == place::weight_decay || place == place::keep) return "weight_decay";
    return place < place::own ? "" : rule.origins.at(place - place::own);
}

std::size_t rate_place(const Entry& rule) {
    for (std::size_t i = 0; i < rule.origins.size(); ++i) {
        if (rule.origins[i] == "lr") return place::own + i;
    }
    return 0;
}

Coefficients coefficients(const Entry& rule, const double* hyperparameters, double weight_decay,
                          double t, double limit) {
    Coefficients result = {};
    // The first hyperparameter of every rule that weight decay enters is lr.
    const Common common{
        {1, 1, limit}, WeightDecay::coefficients(weight_decay, hyperparameters[0]), 1};
    std::memcpy(result.data(), &common, sizeof common);
    rule.fill(hyperparameters, t, result);
    return result;
}

}  // namespace schuss::rules
