// Lion (Chen et al., 2023, algorithm 2): a step of the same length for each element, along the sign
// of an average of the gradients.
#pragma once

struct Lion {
    static constexpr States states{State{"m"}};
    static constexpr Names hyperparameters{"lr", "beta1", "beta2"};
    static constexpr bool takes_gradients = true;
    static constexpr bool updates_parameters = true;
    struct Hyper {
        double lr, beta1, beta2;
    };

    template <typename T>
    struct Coefficients {
        T lr, beta1, one_minus_beta1, beta2, one_minus_beta2;
    };
    static constexpr Names origins{"lr", "beta1", "beta1", "beta2", "beta2"};
    static constexpr Coefficients<Extreme> widest{largest, largest, largest, largest, largest};

    static Coefficients<double> coefficients(const Hyper& h, double) {
        return {h.lr, h.beta1, 1 - h.beta1, h.beta2, 1 - h.beta2};
    }

    static Fall fall(Coefficients<double>&) {
        return {.ratio = 1, .floor = 1, .only_to_zero = true};
    }

    template <typename T, typename V>
    static void update(V& p, V g, V& m, const Coefficients<T>& c) {
        p = p - c.lr * sign(c.beta1 * m + c.one_minus_beta1 * g);
        m = c.beta2 * m + c.one_minus_beta2 * g;
    }
};
