// The sum of gradients, for one step of all of them. What stands in the parameter's place is the
// sum; the first gradient takes the place of whatever was there.
#pragma once

template <bool first>
struct Accumulation : RateOnly {
    static constexpr Names states{};
    static constexpr bool takes_gradients = true;
    static constexpr bool updates_parameters = false;

    template <typename T>
    static void update(T& sum, T g, const Coefficients<T>&) {
        sum = first ? g : sum + g;
    }
};
