// Exponentially weighted averages along an axis of an array, as rules/average.hpp has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/copy.hpp"
#include "numbers/dtype.hpp"

namespace schuss::data {

/// The sum of the weights of t >= 1 values, each of which moved the average by the gain, a part of
/// the distance: 1 - (1-gain)^t, with all its digits for a small gain too.
double weight_of(double gain, std::int64_t t);

/// Averages series whose time runs along the last axis, from `from` on, and writes the averages to
/// `to`, which may be the same memory in the same layout and must not meet it otherwise. Elements
/// need not be aligned.
void ewma(numbers::DType number, std::vector<engine::CopyAxis> axes, const std::byte* from,
          std::byte* to, double beta, bool bias_correction);

}  // namespace schuss::data
