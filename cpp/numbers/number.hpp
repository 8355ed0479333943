// The number formats that arrays may have.
#pragma once

#include <cstddef>
#include <cstdint>

namespace schuss::numbers {

/// First those that updates are computed in.
enum class Number : std::uint8_t { float32, float64, float16, bfloat16 };
inline constexpr int kinds = 4;
inline constexpr int computed_kinds = 2;

constexpr std::size_t size_of(Number number) {
    switch (number) {
        case Number::float32:
            return 4;
        case Number::float64:
            return 8;
        default:
            return 2;
    }
}

/// What a number is computed in.
constexpr Number computed(Number number) {
    return number == Number::float64 ? Number::float64 : Number::float32;
}

/// The formats of a parameter, its gradient and its states. What is computed in float32 may be
/// stored in any format that is, and states in it or in bfloat16.
struct Formats {
    Number parameter, gradient, state;
};

/// One for each combination of formats, and the place of a combination among them.
inline constexpr int combinations = 19;
constexpr int place_of(const Formats& formats) {
    const auto among_three = [](Number number) {
        return number == Number::float32 ? 0 : number == Number::float16 ? 1 : 2;
    };
    if (formats.parameter == Number::float64) return 0;
    const int of_state = formats.state == Number::float32 ? 0 : 1;
    return 1 + (among_three(formats.parameter) * 3 + among_three(formats.gradient)) * 2 + of_state;
}

}  // namespace schuss::numbers
