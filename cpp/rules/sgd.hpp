// Gradient descent: p = p - lr*g.
#pragma once

struct Sgd : RateOnly {
    static constexpr States states{};
    static constexpr bool takes_gradients = true;
    static constexpr bool updates_parameters = true;

    template <typename T, typename V>
    static void update(V& p, V g, const Coefficients<T>& c) {
        p = p - c.lr * g;
    }
};
