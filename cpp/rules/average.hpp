// An exponentially weighted average of arrays that change, such as the weights in training
// (Polyak & Juditsky, 1992, with weights that forget). What stands in the parameter's place is the
// average, in the gradient's the values; the rate of a step is beta.
#pragma once

struct Average {
    static constexpr Names states{};
    static constexpr Names hyperparameters{"beta"};
    static constexpr bool takes_gradients = false;
    static constexpr bool updates_parameters = false;
    struct Hyper {
        double beta;
    };

    template <typename T>
    struct Coefficients {
        T keep, gain, loss;
    };
    static constexpr Names origins{"", "", ""};  // a beta next to 0 may count as 0, next to 1 as 1

    /// beta and 1-beta are rounded separately and do not add up to 1, so a long average with both
    /// as weights would shrink or grow. It moves by a part of the distance instead. With a beta
    /// below 1/2 nothing adds up, and the two weights are more exact.
    static Coefficients<double> coefficients(const Hyper& h, double) {
        const double gain = 1 - h.beta;
        return gain < 0.5 ? Coefficients<double>{1, gain, gain}
                          : Coefficients<double>{h.beta, gain, 0};
    }

    /// The distance times the gain, in two products: what is finite has a finite average, however
    /// large the distance.
    template <typename T>
    static void update(T& average, T value, const Coefficients<T>& c) {
        average = c.keep * average + (c.gain * value - c.loss * average);
    }
};
