// The lower bound in the benchmarks: the same loop and the memory traffic of a rule with this many
// states, but additions only.
#pragma once

template <int count>
struct MemoryFloor : RateOnly {
    static constexpr States states =
        count == 1 ? States{State{"first"}} : States{State{"first"}, State{"second"}};
    static constexpr bool takes_gradients = false;
    static constexpr bool updates_parameters = false;

    template <typename T>
    static void update(T& p, T g, T& first, const Coefficients<T>&) {
        first = first + g;
        p = p + g;
    }

    template <typename T>
    static void update(T& p, T g, T& first, T& second, const Coefficients<T>& c) {
        second = second + g;
        update(p, g, first, c);
    }
};
