// Momentum (Polyak, 1964), as an exponential average of the gradients (dampening = beta) or in the
// classical form (dampening = 0). Nesterov's form looks one step of the velocity ahead.
#pragma once

template <bool nesterov>
struct Momentum {
    static constexpr States states{State{"velocity"}};
    static constexpr Names hyperparameters{"lr", "beta", "dampening", "bias_correction"};
    static constexpr bool takes_gradients = true;
    static constexpr bool updates_parameters = true;
    struct Hyper {
        double lr, beta, dampening, bias_correction;
    };

    template <typename T>
    struct Coefficients {
        T beta, one_minus_dampening, step_size;
    };
    static constexpr Names origins{"beta", "dampening", "lr"};

    static Coefficients<double> coefficients(const Hyper& h, double t) {
        const double inv_bias = h.bias_correction != 0 ? 1 / (1 - ::pow(h.beta, t)) : 1;
        return {h.beta, 1 - h.dampening, h.lr * inv_bias};
    }

    template <typename T>
    static void update(T& p, T g, T& v, const Coefficients<T>& c) {
        v = c.beta * v + c.one_minus_dampening * g;
        p = p - c.step_size * (nesterov ? c.one_minus_dampening * g + c.beta * v : v);
    }
};
