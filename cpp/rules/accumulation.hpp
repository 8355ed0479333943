// The sum of gradients over several steps. The first array is the sum; the first gradient replaces
// its content.
#pragma once

template <bool first>
struct Accumulation : RateOnly {
    static constexpr States states{};
    static constexpr bool takes_gradients = true;
    static constexpr bool updates_parameters = false;

    template <typename T, typename V>
    static void update(V& sum, V g, const Coefficients<T>&) {
        sum = first ? g : sum + g;
    }
};
