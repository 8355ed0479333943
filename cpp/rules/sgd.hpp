// Gradient descent: p = p - lr*g.
#pragma once

struct Sgd {
    static constexpr Names states{};
    static constexpr Names hyperparameters{"lr"};
    static constexpr bool takes_gradients = true;
    static constexpr bool updates_parameters = true;
    struct Hyper {
        double lr;
    };

    template <typename T>
    struct Coefficients {
        T lr;
    };

    static Coefficients<double> coefficients(const Hyper& h, double) { return {h.lr}; }

    template <typename T>
    static void update(T& p, T g, const Coefficients<T>& c) {
        p = p - c.lr * g;
    }
};
