// The transformation of a gradient before it is used: scaling (to undo the loss scale, average over
// workers or clip the norm), then clipping of its elements (Goodfellow, Bengio & Courville, "Deep
// learning", 2016, section 10.11.1).
#pragma once

struct GradientTransform {
    template <typename T>
    struct Coefficients {
        T power, scale, limit;
    };

    /// NaN stays NaN. With scale 1 and an infinite limit, other values do not change either. The
    /// power must be 1; if it is not, the gradients were multiplied by it already.
    template <typename T>
    static T transform(T g, const Coefficients<T>& c) {
        g = g * c.scale;
        g = g > c.limit ? c.limit : g;
        return g < -c.limit ? -c.limit : g;
    }

    /// Complex numbers have no order, so no limit.
    template <typename T>
    static Complex<T> transform(Complex<T> g, const Coefficients<T>& c) {
        return g * c.scale;
    }

    /// Multiplies by the power of a scale that T cannot hold (see numbers::Factors).
    template <typename T>
    static T apply_power(T g, const Coefficients<T>& c) {
        return g * c.power * c.power;
    }
};
