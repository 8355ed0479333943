// Bounds on the parameters, applied after the rule: the projection onto a box (Bertsekas, "On the
// Goldstein-Levitin-Polyak gradient projection method", 1976).
#pragma once

struct Bounds {
    template <typename T>
    struct Coefficients {
        T low, high;
    };

    /// Complex numbers have no order, so no bounds.
    template <typename T>
    static Complex<T> apply(Complex<T> p, const Coefficients<T>&) {
        return p;
    }

    /// NaN stays NaN. Infinite bounds change nothing.
    template <typename T>
    static T apply(T p, const Coefficients<T>& c) {
        p = p < c.low ? c.low : p;
        return p > c.high ? c.high : p;
    }
};
