// The steps of one parameter that some of its rows may still have to make.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "engine/formula.hpp"
#include "engine/row_rest.hpp"
#include "numbers/dtype.hpp"
#include "sweep/level.hpp"

namespace schuss::engine {

/// The steps are counted from the first that a row may have missed. Consecutive steps with the same
/// coefficients are one run.
class RowHistory {
  public:
    struct Run {
        std::uint32_t before;  // the steps before it
        std::uint32_t steps;
        std::uint64_t first;           // the number of its first step among all of the optimizer
        std::optional<Update> update;  // without one, the parameter rested
        std::optional<Update> average;
    };

    /// What the rows of a parameter do in a step.
    struct Step {
        const Update* update;   // nullptr: the parameter rests
        const Update* average;  // nullptr: there is none
        std::uint64_t number;
    };

    /// Makes room for another step. It may throw; `record` cannot.
    void reserve();

    /// Whether a step fits the history. If it does not, bring all rows up to date first.
    bool fits(const Step& step) const;

    /// Adds a step. dtype: the parameter's compute dtype. is_numbered: whether a step depends on
    /// its number, as random rounding does.
    void record(const Step& step, numbers::DType dtype, bool is_numbered) noexcept;

    /// Forgets all steps.
    void clear() noexcept;

    /// The number of steps.
    std::uint32_t count() const { return count_.load(std::memory_order_relaxed); }

    std::size_t runs() const { return used_; }
    const Run& run(std::size_t i) const { return runs_[i]; }

    /// The index of the run that has the step after this number of steps.
    std::size_t run_after(std::uint32_t steps) const;

    /// Whether a kernel can replay every step alone: the parameter rested in none, and none has
    /// bounds or extreme coefficients.
    bool is_plain() const { return is_plain_; }

    /// Whether none of the steps changes anything in a row that has made one of them.
    bool is_still(numbers::DType dtype) const {
        return is_plain_ && rest_ && rest_->is_still(dtype);
    }

    /// The runs as a replay reads them, and the bound for it.
    const sweep::ZeroSteps* zero_steps() const { return zero_steps_.data(); }
    const sweep::Looks* rest(numbers::DType dtype) const {
        return rest_ ? rest_->as(dtype) : nullptr;
    }

    static constexpr std::size_t most_runs = std::size_t{1} << 14;

  private:
    static constexpr std::uint32_t most_steps = 0x7fff'fffe;

    std::deque<Run> runs_;  // those used, and room for another; a deque moves none of them
    std::vector<std::uint32_t> begins_;  // Run::before
    std::vector<sweep::ZeroSteps> zero_steps_;
    std::size_t used_ = 0;
    std::atomic<std::uint32_t> count_ = 0;  // another thread may ask for it meanwhile
    bool is_plain_ = true;
    std::optional<RestBound> rest_;
};

}  // namespace schuss::engine
