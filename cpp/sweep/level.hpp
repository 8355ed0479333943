// What a level offers to the rest: a table with one loop for each rule, decay and number format.
#pragma once

#include <cstddef>
#include <cstdint>

#include "numbers/dtype.hpp"
#include "rules/rule.hpp"

namespace schuss::sweep {

/// Where the rounding at random of a state has its bits from.
struct Stream {
    std::uint64_t key, first;  // the index of the first element
};

/// Updates count elements. operands: the parameter, the gradient, the states of the rule, each
/// aligned, contiguous, and apart from the others in memory; coefficients: of the type that is
/// computed in, as rules::coefficients lays them; streams: of each state that is rounded at random,
/// none of which crosses a multiple of 2^32.
using Kernel = void (*)(std::byte* const* operands, std::size_t count, const void* coefficients,
                        const Stream* streams);

/// The loops of one rule.
struct Kernels {
    Kernel at[rules::decay_count][numbers::combinations];

    Kernel of(rules::Decay decay, const numbers::Formats& formats) const {
        return at[static_cast<int>(decay)][kernel_index(formats)];
    }
};

/// Elements of a gradient whose squares are added up together, and apart, as element i of a block
/// in lane i % survey_lanes.
inline constexpr std::size_t survey_block = 4096;
inline constexpr std::size_t survey_lanes = 16;

/// Adds the squares of elements to the lanes, from a lane on; of elements times scale, where that
/// is asked for. Returns whether all are finite.
using GradientStats = bool (*)(const void* elements, std::size_t count, std::size_t lane,
                               double* lanes, double scale);

/// Converts count elements from the format that they were computed in.
using Store = void (*)(const void* from, void* to, std::size_t count);

/// The loops of one number format.
struct Format {
    GradientStats survey, survey_scaled;
    Store store;  // nullptr where there is nothing to convert
};

/// A bit for each line of features.def.
enum class Feature : unsigned {
#define SCHUSS_FEATURE(name, ...) name,
#include "sweep/features.def"
};

/// One instruction set: the features its code was allowed to use, its loops in the order of the
/// rule book, and those of the number formats.
struct Level {
    const char* name;
    std::uint64_t features;
    const Kernels* rules;
    Format formats[numbers::dtype_count];

    const Format& format(numbers::DType number) const { return formats[static_cast<int>(number)]; }
};

}  // namespace schuss::sweep
