// An exponentially weighted average of changing arrays, such as the weights in training (Polyak &
// Juditsky, 1992, but with exponential weights). The first array is the average and the second has
// the values. Each step sets beta.
#pragma once

struct Average {
    static constexpr States states{};
    static constexpr Names hyperparameters{"beta"};
    static constexpr bool takes_gradients = false;
    static constexpr bool updates_parameters = false;
    struct Hyper {
        double beta;
    };

    template <typename T>
    struct Coefficients {
        T decay_factor, one_minus_beta, pull;
    };
    static constexpr Names origins{"", "", ""};  // a beta that rounds to 0 or 1 is accepted

    /// beta and 1-beta are rounded separately and do not add up to 1, so a long average that uses
    /// both as weights would shrink or grow. Instead, the average moves by a fraction of its
    /// distance to the value. With beta below 1/2 this error does not accumulate, and the two
    /// weights are more accurate.
    static Coefficients<double> coefficients(const Hyper& h, double) {
        const double one_minus_beta = 1 - h.beta;
        return one_minus_beta < 0.5 ? Coefficients<double>{1, one_minus_beta, one_minus_beta}
                                    : Coefficients<double>{h.beta, one_minus_beta, 0};
    }

    /// Multiplies the distance in two products, so that finite values have a finite average however
    /// large the distance is.
    template <typename T, typename V>
    static void update(V& average, V value, const Coefficients<T>& c) {
        average = c.decay_factor * average + (c.one_minus_beta * value - c.pull * average);
    }
};
