// The whole step: gradient statistics, decision, coefficients, run, average, counters.
//
// A step has two parts. The preparation may fail and changes no array. The run cannot fail and
// needs neither memory nor the Python interpreter.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "engine/formula.hpp"
#include "engine/parameter_average.hpp"
#include "engine/plan.hpp"
#include "engine/row_tables.hpp"
#include "numbers/dtype.hpp"
#include "numbers/wide.hpp"

namespace schuss::engine {

/// What a step does with gradients that have a NaN or an infinity.
enum class Nonfinite { propagate, raise, skip };

/// What a step does besides its rule.
struct StepOptions {
    double clip_norm = no_limit;
    double clip_value = no_limit;
    Nonfinite nonfinite = Nonfinite::propagate;
    bool clear_grads = false;
    double average = 0;  // the beta of the average, if the parameters have one
    bool average_from_zero = false;
    bool track_norms = false;  // of the update and of the parameters
    std::uint64_t seed = 0;    // of stochastic rounding

    /// The factor by which clipping multiplies gradients of this norm, as in
    /// torch.nn.utils.clip_grad_norm_: Pascanu, Mikolov & Bengio, 2013, algorithm 1, with a small
    /// number added to the norm. NaN if the norm is NaN.
    numbers::Wide clip_factor(const numbers::Wide& norm) const;
};

/// Parameters that share hyperparameters.
struct Group {
    Formula formula;
    // Whether one of the parameters has this compute dtype.
    std::array<bool, numbers::compute_dtype_count> dtypes = {};
    std::int64_t rested = 0;  // the steps in which all parameters rested
    bool moved = false;       // whether one of them did not rest in the last step
};

/// Computes the update of each group in step t. Returns the first hyperparameter that a group's
/// dtypes cannot represent; the updates are then not to be used.
std::optional<Formula::Misfit> compute_updates(const std::vector<Group>& groups, std::int64_t t,
                                               double clip_value, std::vector<Update>& updates);

/// What happened in a step.
struct Outcome {
    std::optional<double> grad_norm;  // of all scaled gradients, if an option needed it
    bool clipped = false;
    std::optional<std::size_t> first_nonfinite;  // the gradient that stopped the step, if one did
    bool raises = false;                         // whether that is an error
    std::optional<double> update_norm, param_norm;

    bool skipped() const { return first_nonfinite.has_value(); }
};

/// The statistics of gradients on which a step depends.
struct Statistics {
    numbers::Wide norm;           // of all gradients, which are not scaled
    std::size_t first_nonfinite;  // the index of a gradient; the number of gradients if all are
};

class Step {
  public:
    /// The arrays of the parameters.
    Plan plan;

    /// Those of parameters that are updated by rows.
    RowTables rows;

    /// Sets what the next steps do. updates: the checked updates of the next step. Cannot fail.
    void configure(std::vector<Group>&& groups, std::vector<Update>&& updates,
                   const StepOptions& options) noexcept;
    void set_has_average(bool has_average) noexcept { has_average_ = has_average; }

    const std::vector<Group>& groups() const { return groups_; }

    /// Sets the number of steps in which all parameters of a group rested.
    void set_rested(std::size_t group, std::int64_t steps) { groups_.at(group).rested = steps; }
    const StepOptions& options() const { return options_; }
    ParameterAverage& average() { return average_; }
    const ParameterAverage& average() const { return average_; }

    /// The number of steps made, and of steps that were skipped.
    std::int64_t steps() const { return steps_; }
    void set_steps(std::int64_t steps) { steps_ = steps; }
    std::int64_t skipped() const { return skipped_; }
    void set_skipped(std::int64_t skipped) { skipped_ = skipped; }

    /// What happened in the last step; empty before any.
    const std::optional<Outcome>& last() const { return last_; }
    void set_last(const std::optional<Outcome>& outcome) { last_ = outcome; }

    /// Sets the norms of the last step, which must have measured some.
    void set_norms_of_last(double update, double parameter) {
        last_->update_norm = update;
        last_->param_norm = parameter;
    }

    /// The learning rate of each group in the last step; nullptr before any, and after
    /// `forget_lrs`.
    const std::vector<double>* last_lrs() const;

    /// Begins a new version of the learning rates: `last_lrs` forgets those of older versions.
    void forget_lrs() noexcept { ++lr_version_; }
    std::uint64_t lr_version() const { return lr_version_; }

    /// Sets the learning rate of each group for the next step, and computes the updates of the
    /// groups. lr_version: the version to which the rates belong. Returns the first hyperparameter
    /// that the dtypes cannot represent: no step can be made then.
    std::optional<Formula::Misfit> set_lrs(const double* lrs, std::size_t count,
                                           std::uint64_t lr_version);

    /// The first hyperparameter that the dtypes cannot represent in a step with these rates.
    std::optional<Formula::Misfit> check_lrs(const double* lrs, std::size_t count) const;

    /// Prepares the run. nonfinite: replaces the option in this step.
    void prepare(Nonfinite nonfinite);

    /// Makes the step. scale: multiplies the gradients. given: replaces the statistics of the
    /// plan's gradients, which may be a part of all.
    Outcome run(double scale, const Statistics* given = nullptr) noexcept;

    /// The same in ranges: `begin`, then, unless the step is skipped, `run_range` for each range
    /// and `end_ranges`. Begins, and makes the whole step if it is skipped. To give a step up that
    /// has begun, set the weights of the average that it had before.
    Outcome begin(double scale, const Statistics* given) noexcept;
    void run_range(const Plan::Range& range) noexcept { plan.run_range(run_, range); }
    void end_ranges(Outcome& outcome) noexcept;

    /// Brings all rows up to date, or some rows of a parameter. Call `rows.prepare` before.
    void flush_rows() noexcept { rows.flush(plan, options_.seed); }
    void catch_up(std::size_t parameter, const RowOrder& order) noexcept {
        rows.catch_up(plan, options_.seed, parameter, order);
    }

    /// Counts a run.
    void record(const Outcome& outcome) noexcept;

  private:
    Statistics compute_statistics() noexcept;
    void skip(Outcome& outcome) noexcept;
    void end(Outcome& outcome) noexcept;
    void set_norms(Outcome& outcome) const noexcept;
    void count_rests() noexcept;
    bool needs_statistics() const {
        return nonfinite_ != Nonfinite::propagate || options_.clip_norm != no_limit;
    }

    /// The learning rates of one step.
    struct Lrs {
        std::int64_t step = 0;
        std::uint64_t version = 0;
        std::vector<double> values;
    };

    std::vector<Group> groups_;
    std::vector<Update> updates_;  // of the groups, in the next step
    StepOptions options_;
    Nonfinite nonfinite_ = Nonfinite::propagate;  // of the next step
    ParameterAverage average_;
    Update average_update_;  // of the step under way, if there are averages
    bool has_average_ = false;
    Run run_;  // of the next step, or the one under way
    std::atomic<std::int64_t> steps_ = 0;
    std::int64_t skipped_ = 0;
    std::optional<Outcome> last_;
    std::uint64_t lr_version_ = 0;
    std::array<Lrs, 2> lrs_;  // of the last step and the next one, by step modulo 2
};

/// Gradients added up for a later step: the parameters of its plan are the sums.
class Accumulator {
  public:
    Plan plan;

    /// The number of runs whose gradients are in the sums.
    std::int64_t count() const { return count_; }

    /// Sets that number. With 0, no sum has a gradient; otherwise each has.
    void set_count(std::int64_t count) noexcept;

    /// Whether a sum has a gradient. The next run overwrites the sums that have none.
    bool has(std::size_t sum) const { return plan.items[sum].group == filled; }
    void set_has(std::size_t sum, bool has) noexcept {
        plan.items[sum].group = has ? filled : empty;
    }

    /// Multiplies arrays that become sums by a scale: both the parameters and the gradients of the
    /// plan, which must be prepared. A scale of 1 changes nothing.
    void scale(Plan& arrays, double scale) noexcept;

    /// Adds gradients, multiplied by a scale, to the sums. The plan must be prepared.
    void run(double scale, bool clear_grads) noexcept;

  private:
    // The groups of the plan.
    static constexpr std::size_t empty = 0, filled = 1;

    Formula first_{"accumulation_first", 0}, next_{"accumulation", 0};
    std::atomic<std::int64_t> count_ = 0;
};

}  // namespace schuss::engine
