#include "engine/row_history.hpp"

#include <algorithm>

namespace schuss::engine {
namespace {

bool are_equal(const std::optional<Update>& a, const std::optional<Update>& b,
               numbers::DType dtype) {
    if (!a || !b) return a.has_value() == b.has_value();
    return a->kernels == b->kernels && a->coefficients.equal(b->coefficients, dtype);
}

}  // namespace

void RowHistory::reserve() {
    if (runs_.size() == used_) runs_.emplace_back();
    const auto grow = [this](auto& vector) {
        if (vector.size() < runs_.size()) vector.resize(2 * runs_.size());
    };
    grow(begins_);
    grow(zero_steps_);
}

bool RowHistory::fits(const Step& step) const {
    if (used_ == most_runs || count() == most_steps) return false;
    for (std::size_t i = used_; i-- > 0;) {
        const std::optional<Update>& last = runs_[i].update;
        if (!last || step.update == nullptr) continue;
        return last->decay == step.update->decay && last->bounds == step.update->bounds;
    }
    return true;
}

void RowHistory::record(const Step& step, numbers::DType dtype, bool is_numbered) noexcept {
    Run& next = runs_[used_];
    next = {count(), 1, step.number, {}, {}};
    if (step.update != nullptr) {
        next.update = *step.update;
        next.update->coefficients.set_zero_gradient();
    }
    if (step.average != nullptr) next.average = *step.average;
    count_.store(count() + 1, std::memory_order_relaxed);
    if (used_ > 0) {
        Run& last = runs_[used_ - 1];
        const bool follows = !is_numbered || last.first + last.steps == step.number;
        if (follows && are_equal(last.update, next.update, dtype) &&
            are_equal(last.average, next.average, dtype)) {
            ++last.steps;
            ++zero_steps_[used_ - 1].steps;
            return;
        }
    }
    is_plain_ = is_plain_ && next.update && !next.update->bounds.exist() &&
                next.update->coefficients.are_ordinary(dtype);
    if (next.update) {
        if (!rest_) rest_.emplace(*next.update->rule);
        rest_->add(*next.update);
        zero_steps_[used_] = {next.update->coefficients.as(dtype), 1};
    }
    begins_[used_++] = next.before;
}

void RowHistory::clear() noexcept {
    if (!runs_.empty()) runs_.resize(1);  // the room for the next step
    used_ = 0;
    count_.store(0, std::memory_order_relaxed);
    is_plain_ = true;
    rest_.reset();
}

std::size_t RowHistory::run_after(std::uint32_t steps) const {
    // Where each step has coefficients of its own, no search is needed.
    if (steps < used_ && begins_[steps] == steps) return steps;
    const auto end = begins_.begin() + static_cast<std::ptrdiff_t>(used_);
    return static_cast<std::size_t>(std::upper_bound(begins_.begin(), end, steps) -
                                    begins_.begin()) -
           1;
}

}  // namespace schuss::engine
