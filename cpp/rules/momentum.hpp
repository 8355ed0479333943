// Momentum (Polyak, 1964), as an exponential average of the gradients (dampening = beta) or in the
// classical form (dampening = 0). Nesterov's form looks one step of the velocity ahead. Either the
// step or the velocity (Sutskever et al., 2013) contains the learning rate.
#pragma once

template <bool nesterov>
struct Momentum {
    static constexpr States states{State{"velocity"}};
    static constexpr Names hyperparameters{"lr", "beta", "dampening", "bias_correction",
                                           "lr_in_velocity"};
    static constexpr bool takes_gradients = true;
    static constexpr bool updates_parameters = true;
    struct Hyper {
        double lr, beta, dampening, bias_correction, lr_in_velocity;
    };

    template <typename T>
    struct Coefficients {
        T step_size, beta, gradient_weight, fine;  // fine completes a tiny rate in the weight
    };
    static constexpr Names origins{"lr", "beta", "lr", "fine"};
    static constexpr Coefficients<Extreme> widest{largest, largest, largest, largest};

    static Coefficients<double> coefficients(const Hyper& h, double t) {
        const double inv_bias = h.bias_correction != 0 ? 1 / Bias::correction(h.beta, t) : 1;
        const double one_minus_dampening = 1 - h.dampening;
        // -1 as lr_in_velocity gives the velocity the sign of scikit-learn's: p = p + v.
        const double sign = h.lr_in_velocity;
        if (sign != 0) return {sign * inv_bias, h.beta, sign * one_minus_dampening * h.lr, 1};
        return {h.lr * inv_bias, h.beta, one_minus_dampening, 1};
    }

    static Fall fall(Coefficients<double>& c) { return {.ratio = c.beta, .floor = 1}; }

    template <typename T, typename V>
    static void update(V& p, V g, V& v, const Coefficients<T>& c) {
        const V term = c.fine * (c.gradient_weight * g);
        v = c.beta * v + term;
        p = p - c.step_size * (nesterov ? term + c.beta * v : v);
    }
};
