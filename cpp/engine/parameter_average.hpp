// The exponential average of the parameters: its recurrence, its weights, its bias correction.
#pragma once

#include <cstddef>
#include <utility>

#include "engine/formula.hpp"
#include "numbers/dtype.hpp"

namespace schuss::engine {

class ParameterAverage {
  public:
    /// The sum of the weights of all steps so far, as float32 and as float64 round it.
    using Weights = std::pair<double, double>;

    const Weights& weights() const { return weights_; }
    void set_weights(const Weights& weights) { weights_ = weights; }

    /// Forgets all steps.
    void reset() { weights_ = {0, 0}; }
    bool is_empty() const { return weights_.second == 0; }

    /// Counts a step and returns its update of the average. from_zero: the average begins with
    /// zero, to be corrected by `correct_bias`; otherwise it begins with the parameters after the
    /// first step.
    Update next(double beta, bool from_zero) noexcept;

    /// Divides contiguous elements by the sum of the weights.
    void correct_bias(numbers::DType dtype, std::byte* elements, std::size_t count) const noexcept;

  private:
    Weights weights_ = {0, 0};
    Formula average_{"average", 0}, first_average_{"accumulation_first", 0};
};

}  // namespace schuss::engine
