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
        T beta, gain;
    };

    static Coefficients<double> coefficients(const Hyper& h, double) {
        return {h.beta, 1 - h.beta};
    }

    template <typename T>
    static void update(T& average, T value, const Coefficients<T>& c) {
        average = c.beta * average + c.gain * value;
    }
};
