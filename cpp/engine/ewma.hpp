// Exponentially weighted averages along an axis of an array: v_t = beta*v_(t-1) + (1-beta)*x_t.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/copy.hpp"
#include "numbers/number.hpp"

namespace schuss::engine {

/// The sum of the weights of t >= 1 values, 1 - beta^t, with all its digits for a beta close to 1
/// too.
double weight_of(double beta, std::int64_t t);

/// Averages series whose time runs along the last axis, from `from` on, and writes the averages to
/// `to`, which may be the same memory in the same layout and must not meet it otherwise. Elements
/// need not be aligned.
void ewma(numbers::Number number, std::vector<CopyAxis> axes, const std::byte* from, std::byte* to,
          double beta, bool bias_correction);

}  // namespace schuss::engine
