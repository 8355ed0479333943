// What becomes of a gradient before anything else: it is scaled (the scale of the loss undone, a
// mean over workers, clipping by the norm), and its elements are clipped (Goodfellow, Bengio &
// Courville, "Deep learning", 2016, section 10.11.1).
#pragma once

struct Gradient {
    template <typename T>
    struct Coefficients {
        T power, scale, limit;
    };

    /// NaN stays NaN; with scale 1 and an infinite limit all else stays what it is, too. The power
    /// is 1: where it is not, the loop is given gradients that are already scaled.
    template <typename T>
    static T treated(T g, const Coefficients<T>& c) {
        return limited(g * c.scale, c);
    }

    template <typename T>
    static T limited(T g, const Coefficients<T>& c) {
        g = g > c.limit ? c.limit : g;
        return g < -c.limit ? -c.limit : g;
    }

    /// By a scale that T cannot hold (numbers::Factors).
    template <typename T>
    static T scaled(T g, const Coefficients<T>& c) {
        return g * c.power * c.power * c.scale;
    }
};
