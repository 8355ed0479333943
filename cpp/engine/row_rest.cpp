#include "engine/row_rest.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>

namespace schuss::engine {
namespace {

/// What the proof needs of a number format with this many bits and this lowest exponent. floor: at
/// least the root of the smallest number, with a margin of 2. lowest: the least magnitude of
/// a parameter at rest; a smaller one may decay to zero.
template <typename T>
struct Bits;
template <>
struct Bits<float> {
    static constexpr double reach = 0x1p25, floor = 0x1p-62, lowest = 0x1p-60, rounding = 0x1p-24;
};
template <>
struct Bits<double> {
    static constexpr double reach = 0x1p54, floor = 0x1p-510, lowest = 0x1p-500, rounding = 0x1p-53;
};

constexpr double margin = 4;
constexpr std::uint64_t first_look = 8;

/// The bound for the extremes of the coefficients; none if parameters may move without end.
template <typename T>
std::optional<sweep::Rest<T>> rest_of(const rules::RuleInfo& rule, rules::Coefficients extremes) {
    const rules::Fall fall = rule.zero_updates.fall(extremes);
    const double decay = extremes[rules::index::decay_factor];
    const bool falls = fall.ratio <= decay * (1 - 0x1p-18);
    if (decay < 0.5 || fall.floor < Bits<T>::floor || !(falls || fall.only_to_zero)) {
        return std::nullopt;
    }
    sweep::Rest<T> rest = {};
    extremes[rule.rates[0].index] *= margin;
    std::transform(extremes.begin(), extremes.end(), rest.coefficients,
                   [](double value) { return static_cast<T>(value); });
    rest.reach = falls ? static_cast<T>(Bits<T>::reach) : std::numeric_limits<T>::infinity();
    rest.first = fall.ratio == 0 ? 0 : first_look;
    rest.at_rest = std::numeric_limits<std::uint64_t>::max();
    if (decay < 1) {
        rest.lowest = static_cast<T>(Bits<T>::lowest);
        const double steps = std::log(Bits<T>::lowest) / std::log(decay * (1 - Bits<T>::rounding));
        rest.at_rest = static_cast<std::uint64_t>(steps);
    }
    return rest;
}

/// Whether a zero gradient stays zero in a step, and the parameter keeps its sign.
template <typename T>
bool is_tame(const T* step, std::size_t count) {
    const T decay = step[rules::index::decay_factor];
    return !std::isnan(step[rules::index::scale]) && decay > 0 && decay <= 1 &&
           std::all_of(step + rules::index::own, step + count,
                       [](T value) { return std::isfinite(value); });
}

}  // namespace

void RestBound::add(const Update& update) {
    const rules::ZeroUpdates& zero_updates = rule_->zero_updates;
    may_rest_ =
        may_rest_ && zero_updates.fall != nullptr && update.decay == rules::Decay::decoupled;
    if (!may_rest_) return;
    add(float32_, update.coefficients.as(numbers::DType::float32));
    add(float64_, update.coefficients.as(numbers::DType::float64));
    is_empty_ = false;
}

template <typename T>
void RestBound::add(Typed<T>& typed, const void* coefficients) {
    const auto* const step = static_cast<const T*>(coefficients);
    const std::size_t count = rules::index::own + rule_->origins.size();
    subtracts_zero_ = subtracts_zero_ && step[rules::index::scale] > 0 &&
                      !std::signbit(step[rule_->rates[0].index]);
    const bool existed = is_empty_ || typed.exists;
    typed.exists = existed && is_tame(step, count);
    if (!typed.exists) return;
    bool is_wider = is_empty_;
    for (std::size_t i = rules::index::decay_factor; i < count; ++i) {
        const double size = std::fabs(step[i]), before = typed.extremes[i];
        const bool wants_least = rule_->zero_updates.widest[i] == rules::Extreme::least;
        if (!is_empty_ && !(wants_least ? size < before : size > before)) continue;
        typed.extremes[i] = size;
        is_wider = true;
    }
    if (!is_wider) return;  // as most steps are
    const auto rest = rest_of<T>(*rule_, typed.extremes);
    typed.exists = rest.has_value();
    if (rest) typed.rest = *rest;
}

const sweep::Looks* RestBound::as(numbers::DType dtype) const {
    if (is_empty_ || !may_rest_) return nullptr;
    if (dtype == numbers::DType::float32) return float32_.exists ? &float32_.rest : nullptr;
    return float64_.exists ? &float64_.rest : nullptr;
}

bool RestBound::is_still(numbers::DType dtype) const {
    const bool stay = dtype == numbers::DType::float32 ? float32_.is_still() : float64_.is_still();
    return stay && !is_empty_ && may_rest_ && subtracts_zero_ && rule_->zero_updates.keep_states;
}

}  // namespace schuss::engine
