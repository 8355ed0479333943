// Exponentially weighted averages along an axis of an array, with the formula of
// rules/average.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/copy.hpp"
#include "numbers/dtype.hpp"

namespace schuss::data {

/// The sum of the weights of t >= 1 values, each of which moved the average by this fraction of the
/// distance: 1 - beta^t, accurate for a small 1-beta too.
double weight_of(double one_minus_beta, std::int64_t t);

/// Averages the series in `from` along the last axis, and writes the averages to `to`. The two may
/// be the same memory with the same strides, and must not overlap otherwise. Elements need not be
/// aligned.
void ewma(numbers::DType dtype, std::vector<engine::CopyAxis> axes, const std::byte* from,
          std::byte* to, double beta, bool bias_correction);

}  // namespace schuss::data
