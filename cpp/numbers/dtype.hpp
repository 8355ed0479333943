// The number formats of arrays, as formats.def lists them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace schuss::numbers {

/// IEEE 754 binary16 in memory: 5 bits of exponent, 10 of fraction.
struct Float16 {
    std::uint16_t bits;
};

/// The upper half of a float32 in memory: 8 bits of exponent, 7 of fraction (Kalamkar et al., "A
/// study of bfloat16 for deep learning training", 2019).
struct Bfloat16 {
    std::uint16_t bits;
};

/// The elements of a block in memory, each in one byte: q * |q| times a unit for the code q, an
/// int8, or a uint8 if no element is negative. The unit is the scale divided by nearly the square
/// of the largest code (square.hpp). Only states have it.
struct Square8 {
    float scale;
    std::uint8_t codes[128];
};

enum class DType : std::uint8_t {
#define SCHUSS_FORMAT(name, ...) name,
#include "numbers/formats.def"
};

inline constexpr int dtype_count = 0
#define SCHUSS_FORMAT(...) +1
#include "numbers/formats.def"
    ;

/// The number of compute formats, which come first.
inline constexpr int compute_dtype_count = 0
#define SCHUSS_FORMAT(name, stored, block, compute) +(DType::name == DType::compute)
#include "numbers/formats.def"
    ;

constexpr const char* dtype_name(DType dtype) {
    constexpr const char* names[] = {
#define SCHUSS_FORMAT(name, ...) #name,
#include "numbers/formats.def"
    };
    return names[static_cast<int>(dtype)];
}

/// The size of a block in bytes.
constexpr std::size_t size_of(DType dtype) {
    constexpr std::size_t sizes[] = {
#define SCHUSS_FORMAT(name, stored, ...) sizeof(stored),
#include "numbers/formats.def"
    };
    return sizes[static_cast<int>(dtype)];
}

/// The number of elements in a block.
constexpr std::size_t block_of(DType dtype) {
    constexpr std::size_t blocks[] = {
#define SCHUSS_FORMAT(name, stored, block, compute) block,
#include "numbers/formats.def"
    };
    return blocks[static_cast<int>(dtype)];
}

/// The format that updates of such elements are computed in.
constexpr DType compute_dtype(DType dtype) {
    constexpr DType dtypes[] = {
#define SCHUSS_FORMAT(name, stored, block, compute) DType::compute,
#include "numbers/formats.def"
    };
    return dtypes[static_cast<int>(dtype)];
}

/// The bits of a float32 number that a bfloat16 parameter lacks: all 16, or the upper 8 of them, by
/// which it is a number of 24 bits.
enum class Master : std::uint8_t { none, float32, float24 };

inline constexpr int master_count = 3;

/// The size of those bits of an element in bytes.
constexpr std::size_t size_of(Master master) {
    return master == Master::float32 ? 2 : master == Master::float24 ? 1 : 0;
}

/// StoredAs<dtype>::Type is the type of a block in memory.
template <DType dtype>
struct StoredAs;
#define SCHUSS_FORMAT(name, stored, ...) \
    template <>                          \
    struct StoredAs<DType::name> {       \
        using Type = stored;             \
    };
#include "numbers/formats.def"

}  // namespace schuss::numbers
