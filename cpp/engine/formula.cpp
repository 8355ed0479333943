#include "engine/formula.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "sweep/dispatch.hpp"

namespace schuss::engine {

Coefficients::Coefficients(const rules::RuleInfo& rule, const double* hyperparameters,
                           double weight_decay, double t, double limit)
    : float64_(rules::coefficients(rule, hyperparameters, weight_decay, t, limit)),
      count_(rules::index::own + rule.origins.size()),
      rates_(rule.rates) {
    for (std::size_t i = 0; i < count_; ++i) float32_[i] = static_cast<float>(float64_[i]);
    const auto split_if_small = [&](const rules::Rate& rate, auto& typed) {
        using T = std::remove_reference_t<decltype(typed[0])>;
        using Limits = std::numeric_limits<T>;
        const double value = float64_[rate.index];
        if (std::fabs(typed[rate.index]) >= Limits::min() || value == 0) return;
        typed[rate.index] = static_cast<T>(std::ldexp(value, 1 - Limits::min_exponent));
        typed[rate.fine] = Limits::min();
    };
    for (const rules::Rate& rate : rates_) {
        if (rate.index == 0) continue;
        split_if_small(rate, float32_);
        split_if_small(rate, float64_);
    }
}

void Coefficients::set_scale(const numbers::Wide& scale) {
    if (scale.is_one()) return;
    const auto set = [&scale](auto& typed) {
        using T = std::remove_reference_t<decltype(typed[0])>;
        const numbers::Factors<T> factors = numbers::factors_of<T>(scale);
        typed[rules::index::power] = factors.power;
        typed[rules::index::scale] = factors.scale;
    };
    set(float32_);
    set(float64_);
}

void Coefficients::set_zero_gradient() {
    const auto set = [](auto& typed) {
        using T = std::remove_reference_t<decltype(typed[0])>;
        T& scale = typed[rules::index::scale];
        typed[rules::index::power] = 1;
        scale =
            std::isfinite(scale) ? std::copysign(T{1}, scale) : std::numeric_limits<T>::quiet_NaN();
    };
    set(float32_);
    set(float64_);
}

bool Coefficients::equal(const Coefficients& other, numbers::DType dtype) const {
    const std::size_t size = count_ * numbers::size_of(dtype);
    return count_ == other.count_ && std::memcmp(as(dtype), other.as(dtype), size) == 0;
}

std::optional<Coefficients::Unrepresentable> Coefficients::first_unrepresentable(
    rules::Decay decay, numbers::DType dtype) const {
    const auto first_in = [&](const auto& typed) -> std::optional<Unrepresentable> {
        using Limits = std::numeric_limits<std::remove_cvref_t<decltype(typed[0])>>;
        for (std::size_t i = rules::index::limit; i < count_; ++i) {
            const auto magnitude = std::fabs(typed[i]);
            const bool too_large = magnitude > Limits::max();
            if ((magnitude >= Limits::min() && !too_large) || float64_[i] == 0) continue;
            // A limit that is too large limits nothing. A learning rate that is too small even with
            // the `fine` factor makes every update zero.
            if (i == rules::index::limit && too_large) continue;
            const auto is_rate = [i](const rules::Rate& rate) { return rate.index == i; };
            if (std::any_of(rates_.begin(), rates_.end(), is_rate) && !too_large) continue;
            if (i == rules::index::weight_decay && decay != rules::Decay::coupled) continue;
            if (i == rules::index::decay_factor && decay != rules::Decay::decoupled) continue;
            return Unrepresentable{i, float64_[i]};
        }
        return std::nullopt;
    };
    return dtype == numbers::DType::float32 ? first_in(float32_) : first_in(float64_);
}

const void* Coefficients::as(numbers::DType dtype) const {
    if (dtype == numbers::DType::float32) return float32_.data();
    return float64_.data();
}

std::optional<double> Bounds::first_unrepresentable(numbers::DType dtype) const {
    const auto first_in = [this](auto limits) -> std::optional<double> {
        for (const double bound : {low, high}) {
            if (bound != 0 && std::fabs(bound) < limits.min()) return bound;
        }
        return first_beyond(limits.max());
    };
    if (dtype == numbers::DType::float32) return first_in(std::numeric_limits<float>());
    return first_in(std::numeric_limits<double>());
}

std::optional<double> Bounds::first_beyond(double largest) const {
    if (low > largest) return low;
    if (high < -largest) return high;
    return std::nullopt;
}

bool Coefficients::are_ordinary(numbers::DType dtype) const {
    const auto are = [](const auto& typed) {
        return typed[rules::index::power] == 1 && typed[rules::index::fine] == 1;
    };
    return dtype == numbers::DType::float32 ? are(float32_) : are(float64_);
}

bool Coefficients::keep_squares(numbers::DType dtype) const {
    const auto keep = [](const auto& typed) {
        return typed[rules::index::power] == 1 && std::fabs(typed[rules::index::scale]) == 1 &&
               std::isinf(typed[rules::index::limit]);
    };
    return dtype == numbers::DType::float32 ? keep(float32_) : keep(float64_);
}

bool Coefficients::keep_parameters(numbers::DType dtype) const {
    constexpr std::size_t factor = rules::index::decay_factor;
    return dtype == numbers::DType::float32 ? float32_[factor] == 1 : float64_[factor] == 1;
}

Coefficients Coefficients::of_gradient() const {
    Coefficients result = *this;
    result.float64_[rules::index::fine] = 1;
    result.float32_[rules::index::fine] = 1;
    return result;
}

void Coefficients::scale_by_weight_decay() {
    const auto set = [](auto& typed) {
        using T = std::remove_reference_t<decltype(typed[0])>;
        typed[rules::index::power] = 1;
        typed[rules::index::scale] = typed[rules::index::weight_decay];
        typed[rules::index::limit] = std::numeric_limits<T>::infinity();
    };
    set(float32_);
    set(float64_);
}

sweep::Call Update::call(const sweep::Kernels& of, const numbers::Formats& formats,
                         bool prefetches) const {
    const numbers::DType computed = numbers::compute_dtype(formats.parameter);
    sweep::Call call{.states = &of.states,
                     .decay = decay,
                     .formats = formats,
                     .coefficients = coefficients.as(computed),
                     .prefetches = prefetches,
                     .is_bounded = bounds.exist(),
                     .low = bounds.low,
                     .high = bounds.high};
    call.kernel = of.of(decay, formats);
    const bool are_ordinary = coefficients.are_ordinary(computed);
    call.in_pieces = call.kernel == nullptr || !are_ordinary;
    if (call.in_pieces) {
        call.read = numbers::converted(formats);
        call.copies_gradients = !are_ordinary || of.of(decay, call.read) == nullptr;
        if (call.copies_gradients) call.read.gradient = computed;
        call.kernel = of.of(decay, call.read);
        numbers::Formats finely = call.read;
        finely.parameter = computed;
        call.decoupled = of.of(rules::Decay::decoupled, finely);
    }
    return call;
}

Formula::Formula(std::string_view rule, double per_step, const std::vector<double>& others,
                 const FormulaOptions& options)
    : index_(rules::find_rule(rule)), options_(options), values_{per_step} {
    // Otherwise 0 * parameter would be added, which is NaN for an infinite parameter.
    if (options_.weight_decay == 0) options_.decay = rules::Decay::decoupled;
    if (!options_.row_rule.empty()) row_index_ = rules::find_rule(options_.row_rule);
    values_.insert(values_.end(), others.begin(), others.end());
}

Update Formula::update(std::int64_t t, double limit) const noexcept {
    const rules::RuleInfo& info = rule();
    return {
        &info,
        &sweep::level().rules[index_],
        row_index_,
        options_.decay,
        options_.maximize,
        options_.bounds,
        Coefficients(info, values_.data(), options_.weight_decay, static_cast<double>(t), limit)};
}

std::optional<Formula::Misfit> Formula::first_misfit(const Update& update, double limit,
                                                     numbers::DType dtype) const {
    if (options_.bounds.exist()) {
        const std::optional<double> bound = options_.bounds.first_unrepresentable(dtype);
        if (bound) return Misfit{"bounds", *bound, *bound, dtype};
    }
    const auto found = update.coefficients.first_unrepresentable(options_.decay, dtype);
    const std::string_view origin = found ? rules::origin(rule(), found->index) : "";
    if (origin.empty()) return std::nullopt;
    const double common = origin == "clip_value" ? limit : options_.weight_decay;
    const auto misfit = [&](std::string_view name) {
        const auto& names = rule().hyperparameters;
        const auto own = std::find(names.begin(), names.end(), name);
        const auto index = static_cast<std::size_t>(own - names.begin());
        return Misfit{name, own == names.end() ? common : values_[index], found->value, dtype};
    };
    const std::size_t plus = origin.find('+');
    const Misfit first = misfit(origin.substr(0, plus));
    if (plus == origin.npos) return first;
    const Misfit second = misfit(origin.substr(plus + 1));
    return first.value >= second.value ? first : second;
}

}  // namespace schuss::engine
