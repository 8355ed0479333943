// Row-wise Adagrad: Adagrad with one sum for each row of a parameter, to which a step adds the mean
// of the row's squares (Gupta, Bengio & Weston, 2014; FBGEMM's EXACT_ROWWISE_ADAGRAD). This is the
// update of a row of several elements; that of a single one is Adagrad.
#pragma once

struct RowwiseAdagrad : Adagrad {
    static constexpr States states{};

    /// root: the divisor of the row.
    template <typename T>
    struct Coefficients {
        T step_size, eps, initial, root;
    };
    static constexpr Names origins{"lr", "eps", "initial_accumulator_value", ""};
    static constexpr Coefficients<Extreme> widest{largest, least, largest, least};

    static Coefficients<double> coefficients(const Hyper& h, double t) {
        const auto [step_size, eps, initial] = Adagrad::coefficients(h, t);
        return {step_size, eps, initial, 1};
    }

    static Fall fall(Coefficients<double>& c) { return {.ratio = 0, .floor = c.root}; }

    template <typename T>
    static void update_row(T& s, T mean_square, Coefficients<T>& c) {
        s = s + mean_square;
        c.root = square_root(s) + c.eps;
    }

    template <typename T, typename V>
    static void update(V& p, V g, const Coefficients<T>& c) {
        p = p - c.step_size * g / c.root;
    }
};
