#include "engine/exact_norm.hpp"

#include <bit>
#include <cmath>
#include <limits>

#include "numbers/wide.hpp"

namespace schuss::engine {
namespace {

// The bits of a double: a sign, 11 bits of exponent, 52 of fraction.
constexpr int fraction_bits = 52;
constexpr std::uint64_t fraction_mask = (std::uint64_t{1} << fraction_bits) - 1;
constexpr std::uint64_t nonfinite_exponent = 2047;

/// The exponent of numbers in [0.5, 1).
constexpr std::uint64_t exponent_of_half = 1022;

/// The square of a double in [0.5, 1) times this is an integer.
constexpr double square_unit = 0x1p54;
constexpr int root_of_unit = 27;

/// The lower half of the lower half of a sum is one part, its upper half another, so that sums of
/// parts fit them.
constexpr int half_bits = 32;
constexpr std::uint64_t half_mask = (std::uint64_t{1} << half_bits) - 1;

}  // namespace

void ExactNorm::add(const double* values, std::size_t count) noexcept {
    for (std::size_t i = 0; i < count; ++i) {
        const auto bits = std::bit_cast<std::uint64_t>(values[i]);
        const std::uint64_t exponent = bits >> fraction_bits & nonfinite_exponent;
        const auto digits =
            std::bit_cast<double>((bits & fraction_mask) | exponent_of_half << fraction_bits);
        const auto square = static_cast<std::int64_t>(digits * digits * square_unit);
        squares_[exponent].add({static_cast<std::uint64_t>(square), 0});
        if (exponent == nonfinite_exponent) nonfinite_ = nonfinite_ + values[i] * values[i];
    }
}

void ExactNorm::add(const ExactNorm& other) noexcept {
    for (std::size_t i = 0; i < squares_.size(); ++i) squares_[i].add(other.squares_[i]);
    nonfinite_ = nonfinite_ + other.nonfinite_;
}

double ExactNorm::value() const noexcept {
    if (nonfinite_ != 0) return nonfinite_;
    std::size_t largest = nonfinite_exponent - 1;
    while (largest > 0 && squares_[largest].low == 0 && squares_[largest].high == 0) --largest;
    // The sum in units of the squares of the largest numbers, rounded down.
    Sum sum = {};
    for (std::size_t exponent = 1; exponent <= largest; ++exponent) {
        sum.divide_by_four();
        sum.add(squares_[exponent]);
    }
    int power = static_cast<int>(largest) - static_cast<int>(exponent_of_half) - root_of_unit;
    for (; sum.high != 0; ++power) sum.divide_by_four();
    return numbers::Wide(std::sqrt(static_cast<double>(sum.low)), power).value();
}

void ExactNorm::write_parts(std::uint64_t* parts) const noexcept {
    for (const Sum& sum : squares_) {
        *parts++ = sum.low & half_mask;
        *parts++ = sum.low >> half_bits;
        *parts++ = sum.high;
    }
    *parts++ = std::isnan(nonfinite_) ? 1 : 0;
    *parts = std::isinf(nonfinite_) ? 1 : 0;
}

ExactNorm ExactNorm::from_parts(const std::uint64_t* parts) noexcept {
    ExactNorm result;
    for (Sum& sum : result.squares_) {
        sum = {*parts++, 0};
        const std::uint64_t middle = *parts++, high = *parts++;
        sum.add({middle << half_bits, middle >> half_bits});
        sum.add({0, high});
    }
    using Limits = std::numeric_limits<double>;
    if (parts[1] != 0) result.nonfinite_ = Limits::infinity();
    if (parts[0] != 0) result.nonfinite_ = Limits::quiet_NaN();
    return result;
}

}  // namespace schuss::engine
