#include "engine/row_tables.hpp"

#include <algorithm>

#include "engine/sharing.hpp"
#include "runtime/subnormals.hpp"
#include "runtime/thread_pool.hpp"

namespace schuss::engine {
namespace {

/// A run has at most this many shares, and one for each table, so that threads can divide it
/// evenly, unless a share would have fewer bytes.
constexpr std::size_t shares_per_run = 256, fewest_bytes = std::size_t{1} << 12;

std::size_t quotient_rounded_up(std::size_t a, std::size_t b) {
    return (a + b - 1) / b;
}

}  // namespace

bool RowTables::lay_out(std::size_t parameter, const std::vector<std::size_t>& shape,
                        const std::vector<Operand>& operands, const RowStates& states) {
    if (has(parameter)) tables_[parameter].rows.reset();
    gradients_.clear();
    if (!RowTable::fits(shape, operands)) return false;
    auto table = std::make_unique<RowTable>(shape, operands, states, is_lazy_);
    if (tables_.size() <= parameter) tables_.resize(parameter + 1);
    tables_[parameter].rows = std::move(table);
    return true;
}

void RowTables::clear() noexcept {
    tables_.clear();
    gradients_.clear();
}

RowTable* RowTables::find(std::size_t parameter) const {
    return parameter < tables_.size() ? tables_[parameter].rows.get() : nullptr;
}

void RowTables::set_gradient(std::size_t parameter, const RowGradient& gradient) {
    Table& table = tables_.at(parameter);
    table.gradient = gradient;
    table.gradient.computed = table.rows->compute_dtype();
    gradients_.resize(tables_.size());
    gradients_[parameter] = &table.gradient;
}

void RowTables::clear_gradients() noexcept {
    gradients_.clear();
}

bool RowTables::are_pending(std::size_t parameter) const {
    const RowTable* const table = find(parameter);
    return table != nullptr && table->is_pending();
}

bool RowTables::are_pending() const {
    return std::any_of(tables_.begin(), tables_.end(), [](const Table& table) {
        return table.rows != nullptr && table.rows->is_pending();
    });
}

void RowTables::prepare() {
    std::size_t bytes = 0;
    for (Table& table : tables_) {
        if (table.rows == nullptr) continue;
        table.rows->reserve();
        bytes = std::max(bytes, table.rows->scratch_bytes());
    }
    jobs_.reserve(tables_.size());
    shares_.reserve(shares_per_run + tables_.size());
    threads_ = runtime::threads();
    if (scratch_.size() < threads_) scratch_.resize(threads_);
    for (Scratch& scratch : scratch_) scratch.reserve(bytes);
}

template <class Choose>
void RowTables::flush_if(const Plan& plan, std::uint64_t seed, const Choose& choose) noexcept {
    jobs_.clear();
    for (std::size_t i = 0; i < tables_.size(); ++i) {
        RowTable* const table = find(i);
        if (!are_pending(i) || !choose(i)) continue;
        jobs_.push_back({table, {.seed = seed, .first = plan.first(i)}, table->rows()});
    }
    run_jobs();
    for (const Job& job : jobs_) job.table->forget();
}

void RowTables::flush(const Plan& plan, std::uint64_t seed) noexcept {
    flush_if(plan, seed, [](std::size_t) { return true; });
}

void RowTables::catch_up(const Plan& plan, std::uint64_t seed, std::size_t parameter,
                         const RowOrder& rows) noexcept {
    if (!are_pending(parameter)) return;
    jobs_.clear();
    jobs_.push_back({find(parameter),
                     {.order = &rows, .seed = seed, .first = plan.first(parameter)},
                     rows.count()});
    run_jobs();
}

RowHistory::Step RowTables::step_of(const Plan& plan, const Run& step,
                                    std::size_t parameter) const {
    const Update* const update = &step.groups[plan.items[parameter].group];
    return {gradient(parameter) != nullptr ? update : nullptr, step.average, step.step};
}

void RowTables::flush_before(const Plan& plan, const Run& step) noexcept {
    flush_if(plan, step.seed, [&](std::size_t i) {
        return !plan.items[i].rests || !find(i)->fits(step_of(plan, step, i));
    });
}

void RowTables::run(const Plan& plan, const Run& step) noexcept {
    jobs_.clear();
    for (std::size_t i = 0; i < tables_.size(); ++i) {
        const RowGradient* const rows = gradient(i);
        if (rows == nullptr) continue;
        jobs_.push_back({find(i),
                         {rows->order, rows, step_of(plan, step, i), step.seed, plan.first(i)},
                         rows->count()});
    }
    run_jobs();
    for (std::size_t i = 0; i < tables_.size(); ++i) {
        // The plan leaves the average of a parameter without a gradient to its rows if some were
        // pending before the step. `flush_before` may have brought them up to date since.
        const bool rests_in_average = step.average != nullptr && plan.items[i].has_no_arrays();
        if (has(i) && (gradient(i) != nullptr || rests_in_average)) {
            find(i)->record(step_of(plan, step, i));
        }
    }
}

void RowTables::run_jobs() noexcept {
    std::size_t bytes = 0;
    for (const Job& job : jobs_) bytes += job.count * job.table->row_bytes();
    const std::size_t enough = std::max(quotient_rounded_up(bytes, shares_per_run), fewest_bytes);
    shares_.clear();
    for (std::size_t i = 0; i < jobs_.size(); ++i) {
        const std::size_t row = jobs_[i].table->row_bytes(), count = jobs_[i].count;
        if (row == 0) continue;
        const std::size_t rows = quotient_rounded_up(enough, row);  // of a share
        for (std::size_t begin = 0; begin < count; begin += rows) {
            shares_.push_back({i, begin, std::min(begin + rows, count)});
        }
    }
    const auto run_share = [](void* context, std::size_t i, std::size_t slot) noexcept {
        auto& tables = *static_cast<RowTables*>(context);
        const runtime::SubnormalsAreZero mode;
        const Share& share = tables.shares_[i];
        const Job& job = tables.jobs_[share.job];
        job.table->run(job.run, share.begin, share.end, tables.scratch_[slot].data());
    };
    const Sharing sharing =
        sharing_of(pace_.estimate(bytes).count(),
                   std::min(threads_, std::max(shares_.size(), std::size_t{1})));
    const Pace::Clock::time_point start = Pace::Clock::now();
    const std::size_t threads =
        runtime::parallel_for({run_share, this, shares_.size(), sharing.wakes}, sharing.threads);
    pace_.record((Pace::Clock::now() - start) * threads, bytes);
}

}  // namespace schuss::engine
