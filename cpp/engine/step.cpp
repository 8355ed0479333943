#include "engine/step.hpp"

#include <cmath>
#include <utility>

namespace schuss::engine {

numbers::Wide StepOptions::clip_factor(const numbers::Wide& norm) const {
    if (clip_norm == no_limit) return numbers::Wide(1);
    const double denominator = norm.value() + 1e-6;
    const bool overflows = std::isinf(denominator) && std::isfinite(norm.digits);
    const numbers::Wide factor =
        numbers::Wide(clip_norm) / (overflows ? norm : numbers::Wide(denominator));
    return factor.value() >= 1 ? numbers::Wide(1) : factor;
}

std::optional<Formula::Misfit> compute_updates(const std::vector<Group>& groups, std::int64_t t,
                                               double clip_value, std::vector<Update>& updates) {
    updates.resize(groups.size());
    for (std::size_t i = 0; i < groups.size(); ++i) {
        const Formula& formula = groups[i].formula;
        const auto& dtypes = groups[i].dtypes;
        updates[i] = formula.update(t - groups[i].rested, clip_value);
        for (std::size_t k = 0; k < dtypes.size(); ++k) {
            if (!dtypes[k]) continue;
            const auto dtype = static_cast<numbers::DType>(k);
            auto misfit = formula.first_misfit(updates[i], clip_value, dtype);
            if (!misfit) continue;
            misfit->group = i;
            return misfit;
        }
    }
    return std::nullopt;
}

void Step::configure(std::vector<Group>&& groups, std::vector<Update>&& updates,
                     const StepOptions& options) noexcept {
    groups_ = std::move(groups);
    updates_ = std::move(updates);
    options_ = options;
    run_ = {.clear_gradients = options.clear_grads,
            .measure_norms = options.track_norms,
            .seed = options.seed};
}

const std::vector<double>* Step::last_lrs() const {
    const std::int64_t steps = steps_;
    const Lrs& last = lrs_[static_cast<std::size_t>(steps % 2)];
    if (steps == 0 || last.step != steps || last.version != lr_version_) return nullptr;
    return &last.values;
}

std::optional<Formula::Misfit> Step::set_lrs(const double* lrs, std::size_t count,
                                             std::uint64_t lr_version) {
    const std::int64_t t = steps_ + 1;
    // A fork may follow the step at once, so its rates are recorded before it is made.
    Lrs& next = lrs_[static_cast<std::size_t>(t % 2)];
    next.step = t;
    next.version = lr_version;
    next.values.resize(groups_.size());
    for (std::size_t i = 0; i < groups_.size(); ++i) {
        next.values[i] = lrs[count == 1 ? 0 : i];
        groups_[i].formula.set_per_step(next.values[i]);
    }
    return compute_updates(groups_, t, options_.clip_value, updates_);
}

std::optional<Formula::Misfit> Step::check_lrs(const double* lrs, std::size_t count) const {
    std::vector<Group> groups = groups_;
    for (std::size_t i = 0; i < groups.size(); ++i) {
        groups[i].formula.set_per_step(lrs[count == 1 ? 0 : i]);
    }
    std::vector<Update> updates;
    return compute_updates(groups, steps_ + 1, options_.clip_value, updates);
}

void Step::prepare(Nonfinite nonfinite) {
    nonfinite_ = nonfinite;
    plan.prepare();
    if (!rows.is_empty()) rows.prepare();
    if (needs_statistics()) plan.prepare_statistics(rows.gradients());
    if (options_.track_norms) plan.prepare_norms();
}

Outcome Step::run(double scale, const Statistics* given) noexcept {
    Outcome outcome = begin(scale, given);
    if (outcome.skipped()) return outcome;
    if (!rows.is_empty()) rows.flush_before(plan, run_);
    plan.run(run_);
    if (!rows.is_empty()) rows.run(plan, run_);
    end(outcome);
    return outcome;
}

void Step::end_ranges(Outcome& outcome) noexcept {
    if (run_.measure_norms) plan.add_norms();
    end(outcome);
}

Outcome Step::begin(double scale, const Statistics* given) noexcept {
    Outcome outcome;
    numbers::Wide factor(scale);
    if (needs_statistics()) {
        const Statistics statistics = given != nullptr ? *given : compute_statistics();
        const numbers::Wide norm = numbers::Wide(std::fabs(scale)) * statistics.norm;
        outcome.grad_norm = norm.value();
        if (nonfinite_ != Nonfinite::propagate && statistics.first_nonfinite < plan.items.size()) {
            outcome.first_nonfinite = statistics.first_nonfinite;
            outcome.raises = nonfinite_ == Nonfinite::raise;
            if (!outcome.raises) skip(outcome);
            return outcome;
        }
        const numbers::Wide clip = options_.clip_factor(norm);
        outcome.clipped = clip.value() != 1;
        factor = factor * clip;
    }
    for (Update& update : updates_) update.set_scale(factor);
    run_.groups = updates_.data();
    run_.step = static_cast<std::uint64_t>(steps_ + 1);
    run_.average = nullptr;
    if (has_average_) {
        average_update_ = average_.next(options_.average, options_.average_from_zero);
        run_.average = &average_update_;
    }
    return outcome;
}

Statistics Step::compute_statistics() noexcept {
    const GradientStats& statistics = plan.statistics();
    return {statistics.norm(), statistics.first_nonfinite()};
}

/// Does what a step that is skipped does.
void Step::skip(Outcome& outcome) noexcept {
    const bool has_work = run_.clear_gradients || run_.measure_norms;
    if (!has_work) return;
    plan.run({.clear_gradients = run_.clear_gradients, .measure_norms = run_.measure_norms});
    set_norms(outcome);
}

void Step::end(Outcome& outcome) noexcept {
    set_norms(outcome);
    ++steps_;
    if (plan.some_rest()) count_rests();
}

void Step::set_norms(Outcome& outcome) const noexcept {
    if (!run_.measure_norms) return;
    outcome.update_norm = plan.norms()->update.value();
    outcome.param_norm = plan.norms()->parameter.value();
}

/// Counts a step for the groups in which every parameter rested.
void Step::count_rests() noexcept {
    for (Group& group : groups_) group.moved = false;
    const std::vector<const RowGradient*>& by_rows = rows.gradients();
    for (std::size_t i = 0; i < plan.items.size(); ++i) {
        const bool has_rows = i < by_rows.size() && by_rows[i] != nullptr;
        if (!plan.items[i].rests || has_rows) groups_[plan.items[i].group].moved = true;
    }
    for (Group& group : groups_) {
        if (!group.moved) ++group.rested;
    }
}

void Step::record(const Outcome& outcome) noexcept {
    if (outcome.skipped()) ++skipped_;
    last_ = outcome;
}

void Accumulator::scale(Plan& arrays, double scale) noexcept {
    if (scale == 1) return;
    Update update = first_.update(1, no_limit);
    update.set_scale(numbers::Wide(scale));
    arrays.run({.groups = &update});
}

void Accumulator::run(double scale, bool clear_grads) noexcept {
    Update updates[2];
    bool used[2] = {};
    for (const Item& item : plan.items) used[item.group] = true;
    for (const std::size_t group : {empty, filled}) {
        if (!used[group]) continue;
        updates[group] = (group == empty ? first_ : next_).update(1, no_limit);
        updates[group].set_scale(numbers::Wide(scale));
    }
    plan.run({.groups = updates, .clear_gradients = clear_grads});
    for (Item& item : plan.items) {
        if (!item.rests) item.group = filled;
    }
    ++count_;
}

void Accumulator::set_count(std::int64_t count) noexcept {
    for (std::size_t i = 0; i < plan.items.size(); ++i) set_has(i, count > 0);
    count_ = count;
}

}  // namespace schuss::engine
