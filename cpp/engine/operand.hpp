// The arrays of an update, as they are given.
#pragma once

#include <cstddef>
#include <cstdint>

#include "numbers/dtype.hpp"
#include "rules/rule.hpp"

namespace schuss::engine {

/// The role of an array in an update. The master has the bits that a bfloat16 parameter lacks. The
/// average has the parameter's compute dtype. The copy is only written.
enum class Role : std::uint8_t { parameter, gradient, state, master, average, copy };

/// The arrays of an update: those of the kernel, a master, an average, and a copy.
inline constexpr std::size_t max_arrays = rules::max_operands + 3;

/// An array of an update. All arrays have the same shape, but a state in blocks has one axis of
/// blocks without gaps, which have the elements in the order of the parameter's memory.
struct Operand {
    Role role;
    numbers::DType dtype;                            // of a component; not of a master
    const std::byte* data;                           // the element at index zero
    const std::ptrdiff_t* strides;                   // in bytes, one for each axis of the shape
    std::uint8_t components = 1;                     // of an element: 2 if it is a complex number
    numbers::Master master = numbers::Master::none;  // what a master has
    bool at_random = false;                          // whether it is a parameter rounded at random

    /// The size of an element, or of a block, in bytes.
    std::size_t item_size() const {
        if (role == Role::master) return numbers::size_of(master);
        return numbers::size_of(dtype) * components;
    }

    /// The number of elements in a block; 1 if it has no blocks.
    std::size_t block() const { return role == Role::master ? 1 : numbers::block_of(dtype); }

    std::size_t alignment() const {
        return block() > 1 ? alignof(numbers::Square8) : item_size() / components;
    }

    /// Whether elements are rounded at random when they are written.
    bool is_rounded_at_random() const {
        return is_rounded_state() || at_random || master == numbers::Master::float24;
    }
    bool is_rounded_state() const {
        return role == Role::state && dtype != numbers::compute_dtype(dtype);
    }
};

}  // namespace schuss::engine
