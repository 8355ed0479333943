// The lower bound in the benchmarks: the same loop and the memory traffic of a rule with this many
// states, but additions only.
#pragma once

template <int count>
struct MemoryFloor : RateOnly {
    static constexpr States states =
        count == 1 ? States{State{"first"}} : States{State{"first"}, State{"second"}};
    static constexpr bool takes_gradients = false;
    static constexpr bool updates_parameters = false;

    template <typename T, typename V>
    static void update(V& p, V g, V& first, const Coefficients<T>&) {
        first = first + g;
        p = p + g;
    }

    template <typename T, typename V>
    static void update(V& p, V g, V& first, V& second, const Coefficients<T>& c) {
        second = second + g;
        update(p, g, first, c);
    }
};
