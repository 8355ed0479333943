// What an instruction set level provides: a table with one loop for each rule, decay and number
// format.
#pragma once

#include <cstddef>
#include <cstdint>

#include "numbers/combinations.hpp"
#include "rules/rule.hpp"

namespace schuss::sweep {

/// The random bits that round a state: the key of their stream, and the index of the first element.
struct Stream {
    std::uint64_t key, first;
};

/// Updates count elements. `operands` are the parameter, the gradient and the states of the rule;
/// each is aligned and contiguous, and none overlaps another. `coefficients` are values of the
/// compute type in the order of rules::coefficients. `streams` has one entry for each state if
/// states are rounded stochastically; none crosses a multiple of 2^32.
using Kernel = void (*)(std::byte* const* operands, std::size_t count, const void* coefficients,
                        const Stream* streams);

/// The kernels of one rule.
struct Kernels {
    Kernel at[rules::decay_count][numbers::combinations.count];

    Kernel of(rules::Decay decay, const numbers::Formats& formats) const {
        return at[static_cast<int>(decay)][kernel_index(formats)];
    }
};

/// The squares of a gradient are summed in blocks of stats_block elements. Element i of a block is
/// added to lane i % stats_lanes.
inline constexpr std::size_t stats_block = 4096;
inline constexpr std::size_t stats_lanes = 16;

/// Adds the squares of elements to the lanes, beginning with the given lane; the scaled variant
/// multiplies the elements by scale first. Returns whether all elements are finite.
using SumSquares = bool (*)(const void* elements, std::size_t count, std::size_t lane,
                            double* lanes, double scale);

/// Converts count elements from the compute type.
using Store = void (*)(const void* from, void* to, std::size_t count);

/// The loops of one number format.
struct Format {
    SumSquares sum_squares, sum_squares_scaled;
    Store store;  // nullptr for a compute type
};

/// One instruction set: the processor features that its code may use, its kernels in the order of
/// the rule registry, and its loops for each number format.
struct Level {
    const char* name;
    std::uint64_t features;
    const Kernels* rules;
    Format formats[numbers::dtype_count];

    const Format& format(numbers::DType dtype) const { return formats[static_cast<int>(dtype)]; }
};

}  // namespace schuss::sweep
