// A double with a wider exponent, for products, quotients and norms that may leave a double's
// range.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

namespace schuss::numbers {

/// digits * 2^exponent.
struct Wide {
    double digits;  // in [0.5, 1) by magnitude; or zero, infinite or NaN
    int exponent = 0;

    explicit Wide(double value, int power = 0) : digits(value) {
        if (!std::isfinite(value)) return;
        digits = std::frexp(value, &exponent);
        exponent += power;
    }

    /// Rounded, where no double has it: zero or an infinity, where it is too small or too large.
    double value() const { return std::ldexp(digits, exponent); }
};

inline Wide operator*(const Wide& a, const Wide& b) {
    return Wide(a.digits * b.digits, a.exponent + b.exponent);
}
inline Wide operator/(const Wide& a, const Wide& b) {
    return Wide(a.digits / b.digits, a.exponent - b.exponent);
}

/// A number as power * power * scale, all of a format that is computed in.
template <typename T>
struct Factors {
    T power, scale;
};

/// Ordinarily the number itself and 1. Where the format takes it for zero or for infinite, both are
/// normal numbers, so that x * power * power * scale is rounded once for every x: the powers of
/// two come first, and neither they nor the rest leave the range where the result does not.
template <typename T>
Factors<T> factors_of(Wide x) {
    using Limits = std::numeric_limits<T>;
    const T whole = static_cast<T>(x.value());
    const bool special = x.digits == 0 || !std::isfinite(x.digits);
    const T magnitude = std::fabs(whole);
    if (special || (magnitude >= Limits::min() && magnitude <= Limits::max())) return {1, whole};
    // With less than the least, or more than the most, no product is anything but zero or infinite.
    constexpr int least = Limits::min_exponent - Limits::max_exponent;
    constexpr int most = 2 * Limits::max_exponent - 1;
    if (x.exponent < least || x.exponent > most) {
        x.digits = std::copysign(0.5, x.digits);
        x.exponent = std::clamp(x.exponent, least, most);
    }
    // A rest below 1 where numbers become smaller, from 1 on where they become larger.
    const int rest = x.exponent < 0 ? -(x.exponent & 1) : 2 - (x.exponent & 1);
    return {std::ldexp(T{1}, (x.exponent - rest) / 2), static_cast<T>(std::ldexp(x.digits, rest))};
}

}  // namespace schuss::numbers
