// What a step does with one tile: the kernel, and the fused extras (the average of the parameter,
// its copy in another format, clearing the gradient, the norms), which run piece by piece while the
// piece is in the first-level cache.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/exact_norm.hpp"
#include "engine/formula.hpp"
#include "engine/scratch.hpp"
#include "engine/tiles.hpp"
#include "sweep/level.hpp"

namespace schuss::engine {

/// The fused extras read the parameter again after this many elements.
inline constexpr std::size_t elements_per_piece = 4096;

/// The norms of parameters before a step and of their change, and space to compute them.
struct Norms {
    ExactNorm parameter, update;
    double before[elements_per_piece], after[elements_per_piece];
};

/// What a row-wise rule keeps: a number for each row, in the compute dtype.
struct RowStates {
    std::byte* data = nullptr;  // nullptr: there are none
    std::size_t row = 1;        // the elements of a row

    bool exist() const { return data != nullptr; }
};

/// The work on the tiles of one parameter.
struct Pass {
    const sweep::Level& level;
    sweep::Call update = {};                 // without a kernel, parameters stay
    const sweep::Call* average = nullptr;    // nullptr: none
    bool clear_gradients = false;            // after the kernel has read them
    std::uint64_t first = 0;                 // the index of the parameter's first element in memory
    const std::uint64_t* streams = nullptr;  // the keys of the random bits of each state and the
                                             // parameter
    Norms* norms = nullptr;                  // to which the parameter is added; nullptr: to none
    bool rests = false;                      // the parameter is where its gradient is otherwise
    RowStates row_states = {};               // tiles have whole rows if they exist
    const Update* formula = nullptr;         // to which `update` belongs

    bool updates() const { return update.kernel != nullptr; }

    /// The operand that is the parameter.
    std::size_t parameter() const {
        return rests ? rules::gradient_operand : rules::parameter_operand;
    }
};

/// Does a pass over the tiles from `first` to before `last`. data: for each operand, the address
/// where its traversal begins.
void run_pass(const Layout& layout, std::size_t first, std::size_t last, std::byte* const* data,
              const Pass& pass, Scratch& scratch) noexcept;

/// Does a pass over the elements from `first` to before `last` of a flat layout, of which complex
/// numbers count once. Blocks are whole.
void run_elements(const Layout& layout, std::size_t first, std::size_t last, std::byte* const* data,
                  const Pass& pass) noexcept;

}  // namespace schuss::engine
