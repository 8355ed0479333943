// A double with a wider exponent, for products, quotients and norms that may leave the range of
// double.
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

    /// The nearest double: zero if the value is too small, an infinity if it is too large.
    double value() const { return std::ldexp(digits, exponent); }

    bool is_one() const { return digits == 0.5 && exponent == 1; }
};

inline Wide operator*(const Wide& a, const Wide& b) {
    return Wide(a.digits * b.digits, a.exponent + b.exponent);
}
inline Wide operator/(const Wide& a, const Wide& b) {
    return Wide(a.digits / b.digits, a.exponent - b.exponent);
}

/// A number as power * power * scale, all in the compute type T.
template <typename T>
struct Factors {
    T power, scale;
};

/// Usually power is 1 and scale is the number. If T would make it zero or infinite, both factors
/// are normal numbers such that x * power * power * scale rounds once for every x: the powers of
/// two come first, and no intermediate product leaves the range unless the result does.
template <typename T>
Factors<T> factors_of(Wide x) {
    using Limits = std::numeric_limits<T>;
    const T whole = static_cast<T>(x.value());
    const bool special = x.digits == 0 || !std::isfinite(x.digits);
    const T magnitude = std::fabs(whole);
    if (special || (magnitude >= Limits::min() && magnitude <= Limits::max())) return {1, whole};
    // Beyond these exponents every product is zero or infinite.
    constexpr int least = Limits::min_exponent - Limits::max_exponent;
    constexpr int most = 2 * Limits::max_exponent - 1;
    if (x.exponent < least || x.exponent > most) {
        x.digits = std::copysign(0.5, x.digits);
        x.exponent = std::clamp(x.exponent, least, most);
    }
    // The scale is below 1 where products become smaller, and at least 1 where they become larger.
    const int rest = x.exponent < 0 ? -(x.exponent & 1) : 2 - (x.exponent & 1);
    return {std::ldexp(T{1}, (x.exponent - rest) / 2), static_cast<T>(std::ldexp(x.digits, rest))};
}

}  // namespace schuss::numbers
