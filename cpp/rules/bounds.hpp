// Bounds on the parameters, applied after the rule: the projection onto a box (Bertsekas, "On the
// Goldstein-Levitin-Polyak gradient projection method", 1976).
#pragma once

template <typename T>
struct Bounds {
    T low, high;

    /// NaN stays NaN.
    T apply(T p) const {
        p = p < low ? low : p;
        return p > high ? high : p;
    }
};
