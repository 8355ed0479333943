// The base of rules whose only hyperparameter is the learning rate, used as it is.
#pragma once

struct RateOnly {
    static constexpr Names hyperparameters{"lr"};
    struct Hyper {
        double lr;
    };

    template <typename T>
    struct Coefficients {
        T lr;
    };
    static constexpr Names origins{"lr"};
    static constexpr Coefficients<Extreme> widest{largest};

    static Coefficients<double> coefficients(const Hyper& h, double) { return {h.lr}; }

    static Fall fall(Coefficients<double>&) { return {.ratio = 0, .floor = 1}; }
};
