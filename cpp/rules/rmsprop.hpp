// RMSprop (Tieleman & Hinton, 2012): the gradient divided by the root of its mean square. The
// centered form (Graves, 2013) subtracts the squared mean from the mean square. With momentum, the
// scaled gradients are accumulated in a velocity, called buffer.
#pragma once

template <bool centered, bool buffered>
struct RMSprop {
    static constexpr State mean_square{.name = "square_average", .nonnegative = true};
    static constexpr States states = centered && buffered
                                         ? States{mean_square, State{"mean"}, State{"buffer"}}
                                     : centered ? States{mean_square, State{"mean"}}
                                     : buffered ? States{mean_square, State{"buffer"}}
                                                : States{mean_square};
    static constexpr Names hyperparameters{"lr", "beta", "eps", "eps_root", "momentum"};
    static constexpr bool takes_gradients = true;
    static constexpr bool updates_parameters = true;
    struct Hyper {
        double lr, beta, eps, eps_root, momentum;
    };

    template <typename T>
    struct Coefficients {
        T beta, one_minus_beta, momentum, lr, eps, eps_root;
    };
    static constexpr Names origins{"beta", "beta", "momentum", "lr", "eps", "eps_root"};
    static constexpr Coefficients<Extreme> widest{largest, largest, largest, largest, least, least};

    static Coefficients<double> coefficients(const Hyper& h, double) {
        return {h.beta, 1 - h.beta, h.momentum, h.lr, h.eps, h.eps_root};
    }

    static Fall fall(Coefficients<double>& c) {
        return {.ratio = buffered ? c.momentum : 0, .floor = c.eps + ::sqrt(c.eps_root)};
    }

    template <typename T, typename V>
    static void update(V& p, V g, T& s, V& mean, V& buffer, const Coefficients<T>& c) {
        s = c.beta * s + c.one_minus_beta * square(g);
        T variance = s;
        if constexpr (centered) {
            mean = c.beta * mean + c.one_minus_beta * g;
            variance = s - square(mean);
            // Rounding can make it negative. This comparison keeps NaN.
            variance = variance < 0 ? T{} : variance;
        }
        const T root = square_root(variance + c.eps_root) + c.eps;
        if constexpr (buffered) {
            buffer = c.momentum * buffer + g / root;
            p = p - c.lr * buffer;
        } else {
            p = p - c.lr * g / root;
        }
    }

    template <typename T, typename V>
    static void update(V& p, V g, T& s, V& second, const Coefficients<T>& c) {
        V unused = {};
        if constexpr (centered) {
            update(p, g, s, second, unused, c);
        } else {
            update(p, g, s, unused, second, c);
        }
    }

    template <typename T, typename V>
    static void update(V& p, V g, T& s, const Coefficients<T>& c) {
        V unused = {};
        update(p, g, s, unused, unused, c);
    }

    /// The states of an element at rest: a zero over a root is the zero.
    template <typename T, typename V>
    static void rest(V g, T& s, V& second, const Coefficients<T>& c) {
        s = c.beta * s + c.one_minus_beta * square(g);
        second = centered ? c.beta * second + c.one_minus_beta * g : c.momentum * second + g;
    }

    template <typename T, typename V>
    static void rest(V g, T& s, V& mean, V& buffer, const Coefficients<T>& c) {
        rest(g, s, mean, c);
        buffer = c.momentum * buffer + g;
    }
};
