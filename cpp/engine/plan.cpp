#include "engine/plan.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "runtime/subnormals.hpp"
#include "runtime/thread_pool.hpp"
#include "sweep/dispatch.hpp"

namespace schuss::engine {
namespace {

#include "numbers/random.hpp"

/// Elements of a step that are worth sharing with workers who are awake, and how many times more
/// are worth waking them. Measured with Adam in float32 on two cores: in a tight loop two threads
/// take 0.8 to 1.1 of one thread's time for 2^16 elements, and 0.6 to 0.8 for 2^18; between matrix
/// products, where workers sleep, 1.05 for 2^18 if they are woken, and 0.95 for 2^20.
constexpr std::size_t worth_waking_times = 8;
std::atomic<std::size_t> parallel_threshold = std::size_t{1} << 16;

}  // namespace

std::size_t set_parallel_threshold(std::size_t elements) {
    return parallel_threshold.exchange(elements, std::memory_order_relaxed);
}

Coefficients::Coefficients(const rules::Coefficients& values, std::size_t rate)
    : float64_(values), rate_(rate) {
    for (std::size_t i = 0; i < values.size(); ++i) float32_[i] = static_cast<float>(values[i]);
    if (rate == 0) return;
    const auto hold = [&](auto& held) {
        using T = std::remove_reference_t<decltype(held[0])>;
        using Limits = std::numeric_limits<T>;
        if (held[rate] >= Limits::min() || values[rate] == 0) return;
        held[rate] = static_cast<T>(std::ldexp(values[rate], 1 - Limits::min_exponent));
        held[rules::index::fine] = Limits::min();
    };
    hold(float32_);
    hold(float64_);
}

void Coefficients::set_scale(const numbers::Wide& scale) {
    if (scale.value() == 1) return;
    const auto set = [&scale](auto& values) {
        using T = std::remove_reference_t<decltype(values[0])>;
        const numbers::Factors<T> factors = numbers::factors_of<T>(scale);
        values[rules::index::power] = factors.power;
        values[rules::index::scale] = factors.scale;
    };
    set(float32_);
    set(float64_);
}

std::optional<Coefficients::Unheld> Coefficients::first_unheld(rules::Decay decay,
                                                               numbers::DType number) const {
    const auto first_in = [&](const auto& values) -> std::optional<Unheld> {
        using Limits = std::numeric_limits<std::remove_cvref_t<decltype(values[0])>>;
        for (std::size_t i = rules::index::limit; i < values.size(); ++i) {
            const auto magnitude = std::fabs(values[i]);
            const bool too_large = magnitude > Limits::max();
            if ((magnitude >= Limits::min() && !too_large) || float64_[i] == 0) continue;
            // Too large a limit is none; and with a rate that is too small in spite of the fine
            // factor, updates are zero.
            if (i == rules::index::limit && too_large) continue;
            if (i == rate_ && !too_large) continue;
            if (i == rules::index::weight_decay && decay != rules::Decay::coupled) continue;
            if (i == rules::index::decay_factor && decay != rules::Decay::decoupled) continue;
            return Unheld{i, float64_[i]};
        }
        return std::nullopt;
    };
    return number == numbers::DType::float32 ? first_in(float32_) : first_in(float64_);
}

const void* Coefficients::as(numbers::DType number) const {
    if (number == numbers::DType::float32) return float32_.data();
    return float64_.data();
}

void Plan::build() {
    shares_.clear();
    first_.clear();
    scratch_bytes_ = elements_ = 0;
    at_random_ = false;
    const std::size_t enough = tile_elements();
    std::size_t buffered = enough;  // elements of the last share
    for (std::size_t i = 0; i < items.size(); ++i) {
        const Layout& layout = items[i].layout;
        scratch_bytes_ = std::max(scratch_bytes_, layout.scratch_bytes());
        first_.push_back(elements_);
        const numbers::DType state = items[i].formats.state;
        at_random_ = at_random_ || state != numbers::compute_dtype(state);
        elements_ += layout.elements();
        for (std::size_t tile = 0; tile < layout.tiles(); ++tile) {
            if (buffered >= enough) {
                shares_.push_back({i, tile});
                buffered = 0;
            }
            buffered += layout.elements() / layout.tiles();
        }
    }
    shares_.push_back({items.size(), 0});
    built_ = true;
}

void Plan::prepare() {
    if (!built_) build();
    const std::size_t enough = parallel_threshold.load(std::memory_order_relaxed);
    threads_ = elements_ < enough ? 1 : std::min(runtime::threads(), shares_.size());
    worth_waking_ = elements_ >= worth_waking_times * enough;
    if (scratch_.size() < threads_) scratch_.resize(threads_);
    for (Scratch& scratch : scratch_) scratch.reserve(scratch_bytes_);
}

void Plan::prepare_survey() {
    std::vector<GradientStats::Gradient> gradients;
    for (const Item& item : items) {
        gradients.push_back({item.formats.gradient, &item.gradient_order, item.gradient()});
    }
    survey_.prepare(std::move(gradients), threads_);
}

const GradientStats& Plan::survey() noexcept {
    survey_.run(sweep::level(), worth_waking_);
    return survey_;
}

void Plan::run(const Run& run) noexcept {
    struct Step {
        Plan& plan;
        const Run& run;
        const sweep::Level& level;
        std::uint64_t streams[rules::max_states];
    } step{*this, run, sweep::level(), {}};
    for (std::uint64_t k = 0; at_random_ && k < rules::max_states; ++k) {
        step.streams[k] = splitmix64(splitmix64(splitmix64(run.seed) ^ run.step) ^ k);
    }
    const auto run_share = [](void* context, std::size_t number, std::size_t place) noexcept {
        const auto& [plan, all, table, streams] = *static_cast<const Step*>(context);
        const runtime::SubnormalsAreZero mode;
        Share at = plan.shares_[number];
        const Share end = plan.shares_[number + 1];
        Pass pass{table, nullptr, nullptr, nullptr, nullptr, all.clear_gradients, 0, streams};
        for (; at.item <= end.item && at.item < plan.items.size(); at = {at.item + 1, 0}) {
            const Item& item = plan.items[at.item];
            const numbers::DType computed = numbers::compute_dtype(item.formats.parameter);
            pass.first = plan.first_[at.item];
            if (all.groups != nullptr) {
                const Update& rule = all.groups[item.group];
                pass.kernel = rule.kernels->of(rule.decay, item.formats);
                pass.coefficients = rule.coefficients.as(computed);
            }
            if (all.average != nullptr) {
                const numbers::Formats formats{computed, item.formats.parameter, computed};
                pass.average = all.average->kernels->of(all.average->decay, formats);
                pass.average_coefficients = all.average->coefficients.as(computed);
            }
            const std::size_t tiles = at.item == end.item ? end.tile : item.layout.tiles();
            for (std::size_t tile = at.tile; tile < tiles; ++tile) {
                run_pass(item.layout, tile, item.data, pass, plan.scratch_[place]);
            }
        }
    };
    runtime::parallel_for({run_share, &step, shares_.size() - 1, worth_waking_}, threads_);
}

}  // namespace schuss::engine
