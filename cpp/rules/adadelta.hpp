// Adadelta (Zeiler, 2012, algorithm 1): the gradient in the units of the parameter, by the ratio of
// the root mean squares of earlier updates and of gradients.
#pragma once

struct Adadelta {
    static constexpr States states{State{.name = "square_average", .nonnegative = true},
                                   State{.name = "delta_average", .nonnegative = true}};
    static constexpr Names hyperparameters{"lr", "rho", "eps"};
    static constexpr bool takes_gradients = true;
    static constexpr bool updates_parameters = true;
    struct Hyper {
        double lr, rho, eps;
    };

    template <typename T>
    struct Coefficients {
        T lr, rho, one_minus_rho, eps;
    };
    static constexpr Names origins{"lr", "rho", "rho", "eps"};
    static constexpr Coefficients<Extreme> widest{largest, largest, largest, least};

    static Coefficients<double> coefficients(const Hyper& h, double) {
        return {h.lr, h.rho, 1 - h.rho, h.eps};
    }

    static Fall fall(Coefficients<double>& c) { return {.ratio = 0, .floor = c.eps}; }

    template <typename T, typename V>
    static void update(V& p, V g, T& s, T& d, const Coefficients<T>& c) {
        s = c.rho * s + c.one_minus_rho * square(g);
        const V delta = square_root((d + c.eps) / (s + c.eps)) * g;
        d = c.rho * d + c.one_minus_rho * square(delta);
        p = p - c.lr * delta;
    }

    /// A bound on the updates of zero gradients: 0, or NaN unless the ratio stays finite.
    template <typename T, typename V>
    static void bound(V& p, V g, T& s, T& d, const Coefficients<T>& c) {
        const V is_safe = d < 0x1p60f ? filled<V>(1.0f) : g / g;
        update(p, g, s, d, c);
        p = p * is_safe;
    }

    /// The states of an element at rest: a zero times a root is the zero.
    template <typename T, typename V>
    static void rest(V g, T& s, T& d, const Coefficients<T>& c) {
        s = c.rho * s + c.one_minus_rho * square(g);
        d = c.rho * d + c.one_minus_rho * square(g);
    }
};
