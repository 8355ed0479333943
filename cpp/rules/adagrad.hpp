// Adagrad (Duchi, Hazan & Singer, 2011): the gradient divided by the root of the sum of its
// squares. As in PyTorch, the learning rate may decay with the steps.
#pragma once

struct Adagrad {
    static constexpr States states{State{.name = "square_sum", .nonnegative = true}};
    static constexpr Names hyperparameters{"lr", "lr_decay", "eps", "initial_accumulator_value"};
    static constexpr bool takes_gradients = true;
    static constexpr bool updates_parameters = true;
    struct Hyper {
        double lr, lr_decay, eps, initial_accumulator_value;
    };

    /// initial: the first value of the sums. It is here so that T must hold it.
    template <typename T>
    struct Coefficients {
        T step_size, eps, initial;
    };
    static constexpr Names origins{"lr", "eps", "initial_accumulator_value"};
    static constexpr Coefficients<Extreme> widest{largest, least, largest};
    static constexpr bool keeps_states = true;  // while the gradients are zero

    static Coefficients<double> coefficients(const Hyper& h, double t) {
        return {h.lr / (1 + (t - 1) * h.lr_decay), h.eps, h.initial_accumulator_value};
    }

    static Fall fall(Coefficients<double>& c) { return {.ratio = 0, .floor = c.eps}; }

    template <typename T, typename V>
    static void update(V& p, V g, T& s, const Coefficients<T>& c) {
        s = s + square(g);
        p = p - c.step_size * g / (square_root(s) + c.eps);
    }
};
