// What a step does with one tile: the kernel, and the fused extras (the average of the parameter,
// its copy in another format, clearing the gradient), which run piece by piece while the piece is
// in the first-level cache.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/scratch.hpp"
#include "engine/tiles.hpp"
#include "sweep/level.hpp"

namespace schuss::engine {

/// The work on the tiles of one parameter.
struct Pass {
    const sweep::Level& level;
    sweep::Call update;            // without a kernel, only clear the gradient
    const sweep::Call* average;    // nullptr: none
    bool clear_gradients;          // after the kernel has read them
    std::uint64_t first;           // the index of the parameter's first element in memory
    const std::uint64_t* streams;  // for each state, the key of its random bits

    bool updates() const { return update.kernel != nullptr; }
};

/// Does a pass over one tile. data: for each operand, the address where its traversal begins.
void run_pass(const Layout& layout, std::size_t tile, std::byte* const* data, const Pass& pass,
              Scratch& scratch) noexcept;

}  // namespace schuss::engine
