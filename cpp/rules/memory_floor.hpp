// The yardstick of the benchmarks: the memory traffic of a rule with as many states, and additions
// only, by the same sweep.
#pragma once

template <int count>
struct MemoryFloor : RateOnly {
    static constexpr Names states = count == 1 ? Names{"first"} : Names{"first", "second"};
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
