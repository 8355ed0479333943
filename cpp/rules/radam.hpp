// RAdam (Liu et al., 2020, algorithm 2): Adam that steps along the averaged gradient alone while
// the average of the squares has too few terms, and is rectified for their number afterwards. As in
// PyTorch, eps is added to the root before its bias is corrected.
#pragma once

struct RAdam {
    static constexpr States states{State{"m"}, State{.name = "v", .nonnegative = true}};
    static constexpr Names hyperparameters{"lr", "beta1", "beta2", "eps"};
    static constexpr bool takes_gradients = true;
    static constexpr bool updates_parameters = true;
    struct Hyper {
        double lr, beta1, beta2, eps;
    };

    /// adapts: 1 if the step divides by the root, else 0.
    template <typename T>
    struct Coefficients {
        T step_size, beta1, one_minus_beta1, beta2, one_minus_beta2, adapts, eps;
    };
    static constexpr Names origins{"lr", "beta1", "beta1", "beta2", "beta2", "", "eps"};
    static constexpr Coefficients<Extreme> widest{largest, largest, largest, least,
                                                  largest, largest, least};

    static Coefficients<double> coefficients(const Hyper& h, double t) {
        const double power2 = ::pow(h.beta2, t), bias2 = 1 - power2;
        const double most = 2 / (1 - h.beta2) - 1, length = most - 2 * t * power2 / bias2;
        const bool adapts = length > 5;
        const double rectification =
            adapts
                ? ::sqrt((length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length)) *
                      ::sqrt(bias2)
                : 1;
        return {h.lr / Bias::correction(h.beta1, t) * rectification,
                h.beta1,
                1 - h.beta1,
                h.beta2,
                1 - h.beta2,
                adapts ? 1.0 : 0.0,
                h.eps};
    }

    static Fall fall(Coefficients<double>& c) {
        return Moments::fall(c.beta1, ::sqrt(c.beta2), c.eps, c.beta2);
    }

    template <typename T, typename V>
    static void update(V& p, V g, V& m, T& v, const Coefficients<T>& c) {
        m = c.beta1 * m + c.one_minus_beta1 * g;
        v = c.beta2 * v + c.one_minus_beta2 * square(g);
        const T root = square_root(v) + c.eps;
        p = p - c.step_size * m / (c.adapts != 0 ? root : filled<T>(1.0f));
    }

    /// A bound on the updates of zero gradients, whether steps divide by the root or not.
    template <typename T, typename V>
    static void bound(V& p, V g, V& m, T& v, const Coefficients<T>& c) {
        m = c.beta1 * m + c.one_minus_beta1 * g;
        v = c.beta2 * v + c.one_minus_beta2 * square(g);
        const T root = square_root(v) + c.eps, one = filled<V>(1.0f);
        p = p - c.step_size * m / (root > 1 ? one : root);
    }
};
