// Weight decay, applied before the rule. Coupled decay adds weight_decay*p to the gradient (an L2
// penalty). Decoupled decay shrinks the parameter (Loshchilov & Hutter, 2019, algorithm 2). No
// decay is the decoupled form with the factor 1, which changes no bits.
#pragma once

struct WeightDecay {
    template <typename T>
    struct Coefficients {
        T weight_decay, decay_factor;
    };

    static Coefficients<double> coefficients(double weight_decay, double lr) {
        return {weight_decay, 1 - lr * weight_decay};
    }

    template <Decay decay, typename T, typename V>
    static void apply(V& p, V& g, const Coefficients<T>& c) {
        if constexpr (decay == Decay::coupled) g = g + c.weight_decay * p;
        if constexpr (decay == Decay::decoupled) p = p * c.decay_factor;
    }

    template <typename T>
    static void apply(Decay decay, T& p, T& g, const Coefficients<T>& c) {
        if (decay == Decay::coupled) return apply<Decay::coupled>(p, g, c);
        apply<Decay::decoupled>(p, g, c);
    }
};
