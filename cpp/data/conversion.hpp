// Arrays in another number format.
#pragma once

#include <cstddef>

#include "numbers/dtype.hpp"

namespace schuss::data {

/// Whether `convert` has the conversion: all but those from 16 bits to other 16 bits, and from
/// float64 to 16 bits, which would round twice.
bool can_convert(numbers::DType from, numbers::DType to);

/// Converts contiguous elements, on the threads of the pool: rounds them to nearest, ties to even.
/// Subnormal numbers are kept.
void convert(numbers::DType from, const std::byte* values, numbers::DType to, std::byte* out,
             std::size_t count) noexcept;

}  // namespace schuss::data
