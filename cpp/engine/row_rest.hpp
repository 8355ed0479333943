// When rows have come to rest: a bound on the updates that their parameters may still miss.
#pragma once

#include "engine/formula.hpp"
#include "numbers/dtype.hpp"
#include "rules/registry.hpp"
#include "sweep/level.hpp"

namespace schuss::engine {

/// The largest update of a parameter in any of several steps with zero gradients. Where it is less
/// than half of the distance from the parameter to the next number, the step rounds to the
/// parameter.
///
/// Coefficients: each has the value, among those of the steps, that makes the update larger. Every
/// operation of a rule is monotonic in them, and rounding keeps the order. So the update that a
/// rule makes with them is at least as large as that of the next step, for the same states.
///
/// Later steps: the states fall, and with them the update, at least by the ratio that the rule
/// declares. The parameter falls too, if it decays. The ratio is less than the factor of the decay
/// times 1 - 2^-18, a margin that exceeds all rounding errors of a step. So the update falls faster
/// than the parameter. There is one exception. A second moment that falls below the smallest number
/// becomes zero at once. What is added to its root is at least the floor, so that this at most
/// doubles the update. The bound has four times the learning rate, which covers it.
class RestBound {
  public:
    /// The bound of no steps.
    explicit RestBound(const rules::RuleInfo& rule) : rule_(&rule) {}

    /// Includes another step, whose scale is 1, -1 or NaN.
    void add(const Update& update);

    /// The bound in a compute dtype, as a replay reads it; nullptr if the steps may change any
    /// parameter. It stays at its address, and adding a step changes it.
    const sweep::Looks* as(numbers::DType dtype) const;

    /// Whether none of the steps changes anything in a row that has made one of them.
    bool is_still(numbers::DType dtype) const;

  private:
    template <typename T>
    struct Typed {
        rules::Coefficients extremes = {};
        bool exists = false;
        sweep::Rest<T> rest = {};

        /// Whether updates are zero, which is seen at once, and no parameter decays.
        bool is_still() const {
            return exists && rest.first == 0 && extremes[rules::index::decay_factor] == 1;
        }
    };
    template <typename T>
    void add(Typed<T>& typed, const void* coefficients);

    const rules::RuleInfo* rule_;
    bool is_empty_ = true, may_rest_ = true;
    bool subtracts_zero_ = true;  // whether an update of zero is +0 in all steps: -0 stays then
    Typed<float> float32_;
    Typed<double> float64_;
};

}  // namespace schuss::engine
