// What a level offers to the rest: a table with one loop for each rule, decay and number format.
#pragma once

#include <cstddef>
#include <cstdint>

#include "numbers/number.hpp"
#include "rules/rule.hpp"

namespace schuss::sweep {

/// Updates count elements. operands: the parameter, the gradient, the states of the rule, each
/// aligned, contiguous, and apart from the others in memory; coefficients: of the operands' type,
/// as rules::coefficients lays them.
using Kernel = void (*)(void* const* operands, std::size_t count, const void* coefficients);

/// The loops of one rule.
struct Kernels {
    Kernel at[rules::decay_kinds][numbers::kinds];

    Kernel of(rules::Decay decay, numbers::Number number) const {
        return at[static_cast<int>(decay)][static_cast<int>(number)];
    }
};

/// A bit for each line of features.def.
enum class Feature : unsigned {
#define SCHUSS_FEATURE(name, ...) name,
#include "sweep/features.def"
};

/// One instruction set: the features its code was allowed to use, and its loops in the order of
/// the rule book.
struct Level {
    const char* name;
    std::uint64_t features;
    const Kernels* rules;
};

}  // namespace schuss::sweep
