// NAdam (Dozat, 2016): Adam that steps along Nesterov's look-ahead, with a momentum mu that grows
// from beta1/2 to beta1.
#pragma once

struct NAdam {
    static constexpr States states{State{"m"}, State{.name = "v", .nonnegative = true}};
    static constexpr Names hyperparameters{"lr",  "beta1",   "beta2",
                                           "eps", "eps_hat", "momentum_decay"};
    static constexpr bool takes_gradients = true;
    static constexpr bool updates_parameters = true;
    struct Hyper {
        double lr, beta1, beta2, eps, eps_hat, momentum_decay;
    };

    template <typename T>
    struct Coefficients {
        T lr, beta1, one_minus_beta1, beta2, one_minus_beta2, gradient_weight, m_weight, inv_bias2,
            eps;
    };
    static constexpr Names origins{"lr",    "beta1", "beta1", "beta2",      "beta2",
                                   "beta1", "beta1", "beta2", "eps+eps_hat"};
    static constexpr Coefficients<Extreme> widest{largest, largest, largest, least, largest,
                                                  largest, largest, least,   least};

    static Coefficients<double> coefficients(const Hyper& h, double t) {
        const double bias2 = Bias::correction(h.beta2, t);
        const double mu = momentum(h, t), next = momentum(h, t + 1);
        const double product = ::pow(h.beta1, t) < negligible ? 0 : momentum_product(h, t);
        return {h.lr,
                h.beta1,
                1 - h.beta1,
                h.beta2,
                1 - h.beta2,
                (1 - mu) / (1 - product),
                next / (1 - product * next),
                1 / bias2,
                h.eps + h.eps_hat / ::sqrt(bias2)};
    }

    static Fall fall(Coefficients<double>& c) {
        return Moments::fall(c.beta1, ::sqrt(c.beta2), c.eps / ::sqrt(c.inv_bias2), c.beta2);
    }

    static double momentum(const Hyper& h, double t) {
        return h.beta1 * (1 - 0.5 * ::pow(0.96, t * h.momentum_decay));
    }

    static constexpr double negligible = 0x1p-54;

    /// The product of the momenta of steps i to t, times those before. Few multiplications give it
    /// for any t: the momenta soon equal beta1, or 1 - product rounds to 1.
    static double momentum_product(const Hyper& h, double t, double i = 1, double before = 1) {
        if (i > t || before < negligible) return before;
        const double mu = momentum(h, i);
        if (mu == h.beta1) return before * ::pow(mu, t - i + 1);
        return momentum_product(h, t, i + 1, before * mu);
    }

    template <typename T, typename V>
    static void update(V& p, V g, V& m, T& v, const Coefficients<T>& c) {
        m = c.beta1 * m + c.one_minus_beta1 * g;
        v = c.beta2 * v + c.one_minus_beta2 * square(g);
        const T root = square_root(v * c.inv_bias2) + c.eps;
        p = p - c.lr * (c.gradient_weight * g + c.m_weight * m) / root;
    }
};
