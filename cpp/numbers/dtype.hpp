// The number formats that arrays may have.
#pragma once

#include <cstddef>
#include <cstdint>

namespace schuss::numbers {

/// First those that updates are computed in.
enum class DType : std::uint8_t { float32, float64, float16, bfloat16 };
inline constexpr int dtype_count = 4;
inline constexpr int compute_dtype_count = 2;

constexpr std::size_t size_of(DType number) {
    switch (number) {
        case DType::float32:
            return 4;
        case DType::float64:
            return 8;
        default:
            return 2;
    }
}

/// What a number is computed in.
constexpr DType compute_dtype(DType number) {
    return number == DType::float64 ? DType::float64 : DType::float32;
}

/// The formats of a parameter, its gradient and its states. What is computed in float32 may be
/// stored in any format that is, and states in it or in bfloat16.
struct Formats {
    DType parameter, gradient, state;
};

/// One for each combination of formats, and the place of a combination among them.
inline constexpr int combinations = 19;
constexpr int kernel_index(const Formats& formats) {
    const auto among_three = [](DType number) {
        return number == DType::float32 ? 0 : number == DType::float16 ? 1 : 2;
    };
    if (formats.parameter == DType::float64) return 0;
    const int of_state = formats.state == DType::float32 ? 0 : 1;
    return 1 + (among_three(formats.parameter) * 3 + among_three(formats.gradient)) * 2 + of_state;
}

}  // namespace schuss::numbers
