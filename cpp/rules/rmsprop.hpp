// RMSprop (Tieleman & Hinton, 2012): the gradient over the root of its mean square. Centered
// (Graves, 2013), the mean is taken off the mean square; with momentum, the scaled gradients pass
// through a velocity called buffer.
#pragma once

template <bool centered, bool buffered>
struct RMSprop {
    static constexpr Names states = centered && buffered ? Names{"square_average", "mean", "buffer"}
                                    : centered           ? Names{"square_average", "mean"}
                                    : buffered           ? Names{"square_average", "buffer"}
                                                         : Names{"square_average"};
    static constexpr Names hyperparameters{"lr", "beta", "eps", "eps_root", "momentum"};
    static constexpr bool takes_gradients = true;
    static constexpr bool updates_parameters = true;
    struct Hyper {
        double lr, beta, eps, eps_root, momentum;
    };

    template <typename T>
    struct Coefficients {
        T beta, rest, momentum, lr, eps, eps_root;
    };
    static constexpr Names origins{"beta", "beta", "momentum", "lr", "eps", "eps_root"};

    static Coefficients<double> coefficients(const Hyper& h, double) {
        return {h.beta, 1 - h.beta, h.momentum, h.lr, h.eps, h.eps_root};
    }

    template <typename T>
    static void update(T& p, T g, T& s, T& mean, T& buffer, const Coefficients<T>& c) {
        s = c.beta * s + c.rest * (g * g);
        T variance = s;
        if constexpr (centered) {
            mean = c.beta * mean + c.rest * g;
            variance = s - mean * mean;
            // Rounding can make it negative; written so that NaN stays NaN.
            variance = variance < 0 ? 0 : variance;
        }
        const T root = square_root(variance + c.eps_root) + c.eps;
        if constexpr (buffered) {
            buffer = c.momentum * buffer + g / root;
            p = p - c.lr * buffer;
        } else {
            p = p - c.lr * g / root;
        }
    }

    template <typename T>
    static void update(T& p, T g, T& s, T& second, const Coefficients<T>& c) {
        T unused = 0;
        if constexpr (centered) {
            update(p, g, s, second, unused, c);
        } else {
            update(p, g, s, unused, second, c);
        }
    }

    template <typename T>
    static void update(T& p, T g, T& s, const Coefficients<T>& c) {
        T unused = 0;
        update(p, g, s, unused, unused, c);
    }
};
