// Adam (Kingma & Ba, 2015, algorithm 1, with the bias corrections folded into the coefficients as
// in section 2). AMSGrad (Reddi et al., 2018) divides by the largest v so far.
#pragma once

template <bool amsgrad>
struct Adam {
    static constexpr States states =
        amsgrad ? States{State{"m"}, State{.name = "v", .nonnegative = true},
                         State{.name = "v_max", .nonnegative = true}}
                : States{State{"m"}, State{.name = "v", .nonnegative = true}};
    static constexpr Names hyperparameters{"lr",       "beta1",   "beta2",          "eps",
                                           "eps_root", "eps_hat", "bias_correction"};
    static constexpr bool takes_gradients = true;
    static constexpr bool updates_parameters = true;
    struct Hyper {
        double lr, beta1, beta2, eps, eps_root, eps_hat, bias_correction;
    };

    template <typename T>
    struct Coefficients {
        T beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, inv_bias2, eps_root, eps;
    };
    static constexpr Names origins{"beta1", "beta1", "beta2",    "beta2",
                                   "lr",    "beta2", "eps_root", "eps+eps_hat"};
    static constexpr Coefficients<Extreme> widest{largest, largest, least, largest,
                                                  largest, least,   least, least};

    static Coefficients<double> coefficients(const Hyper& h, double t) {
        const bool corrected = h.bias_correction != 0;
        const double bias1 = corrected ? Bias::correction(h.beta1, t) : 1;
        const double bias2 = corrected ? Bias::correction(h.beta2, t) : 1;
        return {h.beta1,      1 - h.beta1, h.beta2,    1 - h.beta2,
                h.lr / bias1, 1 / bias2,   h.eps_root, h.eps + h.eps_hat / ::sqrt(bias2)};
    }

    static Fall fall(Coefficients<double>& c) {
        const double floor = (c.eps + ::sqrt(c.eps_root)) / ::sqrt(c.inv_bias2);
        if (amsgrad) return {.ratio = c.beta1, .floor = floor};
        return Moments::fall(c.beta1, ::sqrt(c.beta2), floor, c.beta2);
    }

    template <typename T, typename V>
    static void update(V& p, V g, V& m, T& v, T& v_max, const Coefficients<T>& c) {
        m = c.beta1 * m + c.one_minus_beta1 * g;
        v = c.beta2 * v + c.one_minus_beta2 * square(g);
        T second_moment = v;
        if constexpr (amsgrad) {
            v_max = maximum(v_max, v);
            second_moment = v_max;
        }
        p = p - c.step_size * m / (square_root(second_moment * c.inv_bias2 + c.eps_root) + c.eps);
    }

    template <typename T, typename V>
    static void update(V& p, V g, V& m, T& v, const Coefficients<T>& c) {
        T unused = {};
        update(p, g, m, v, unused, c);
    }
};
