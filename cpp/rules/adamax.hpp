// Adamax (Kingma & Ba, 2015, algorithm 2): Adam with the largest magnitude of recent gradients in
// place of their root mean square. As in PyTorch, eps is added to the magnitude.
#pragma once

struct Adamax {
    static constexpr States states{State{"m"}, State{.name = "u", .nonnegative = true}};
    static constexpr Names hyperparameters{"lr", "beta1", "beta2", "eps"};
    static constexpr bool takes_gradients = true;
    static constexpr bool updates_parameters = true;
    struct Hyper {
        double lr, beta1, beta2, eps;
    };

    template <typename T>
    struct Coefficients {
        T step_size, beta1, one_minus_beta1, beta2, eps;
    };
    static constexpr Names origins{"lr", "beta1", "beta1", "beta2", "eps"};
    static constexpr Coefficients<Extreme> widest{largest, largest, largest, least, least};

    static Coefficients<double> coefficients(const Hyper& h, double t) {
        return {h.lr / Bias::correction(h.beta1, t), h.beta1, 1 - h.beta1, h.beta2, h.eps};
    }

    static Fall fall(Coefficients<double>& c) {
        return Moments::fall(c.beta1, c.beta2, c.eps, c.beta2);
    }

    template <typename T, typename V>
    static void update(V& p, V g, V& m, T& u, const Coefficients<T>& c) {
        m = c.beta1 * m + c.one_minus_beta1 * g;
        u = maximum(c.beta2 * u, magnitude(g) + c.eps);
        p = p - c.step_size * m / u;
    }
};
