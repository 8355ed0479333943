// The number formats that arrays may have.
#pragma once

#include <cstddef>

namespace schuss::numbers {

enum class Number { float32, float64 };
inline constexpr int kinds = 2;

constexpr std::size_t size_of(Number number) {
    return number == Number::float32 ? 4 : 8;
}

}  // namespace schuss::numbers
