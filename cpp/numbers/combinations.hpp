// The combinations of number formats that a step can have, numbered for the tables of kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "numbers/dtype.hpp"

namespace schuss::numbers {

/// The number formats of a parameter, its gradient and its states.
struct Formats {
    DType parameter, gradient, state;
};

/// Whether there is a kernel for the formats. All three have the same compute format. States are
/// stored in that format or in bfloat16.
constexpr bool is_supported(const Formats& formats) {
    const DType compute = compute_dtype(formats.parameter);
    const bool computed_alike =
        compute_dtype(formats.gradient) == compute && compute_dtype(formats.state) == compute;
    return computed_alike && (formats.state == compute || formats.state == DType::bfloat16);
}

/// The supported combinations, and the index of each among them.
struct Combinations {
    int count = 0;
    Formats at[dtype_count * dtype_count * dtype_count] = {};
    std::int8_t index[dtype_count][dtype_count][dtype_count] = {};
};

inline constexpr Combinations combinations = [] {
    Combinations result;
    for (int p = 0; p < dtype_count; ++p) {
        for (int g = 0; g < dtype_count; ++g) {
            for (int s = 0; s < dtype_count; ++s) {
                const Formats formats{static_cast<DType>(p), static_cast<DType>(g),
                                      static_cast<DType>(s)};
                if (!is_supported(formats)) continue;
                result.index[p][g][s] = static_cast<std::int8_t>(result.count);
                result.at[result.count++] = formats;
            }
        }
    }
    return result;
}();

/// The index of a supported combination.
constexpr int kernel_index(const Formats& formats) {
    return combinations.index[static_cast<int>(formats.parameter)]
                             [static_cast<int>(formats.gradient)][static_cast<int>(formats.state)];
}

}  // namespace schuss::numbers
