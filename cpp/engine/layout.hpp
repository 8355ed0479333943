// How arrays of one shape, each with strides of its own, are walked together: as a range of tiles.
//
// Elements of an update are independent, so the order of the walk is free. The axes are sorted by
// the first operand's strides, turned where most operands run backwards, and merged where they run
// on in every operand. What is then one contiguous axis is flat, and a tile is a piece of it.
// Otherwise a tile is a box of axes, sized so that it runs along the fast axis of each operand;
// operands that the loop cannot take as they lie are copied into the box's dense order, and back if
// written.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "rules/rule.hpp"
#include "sweep/level.hpp"

namespace schuss::engine {

/// Elements a tile: so many that claiming one costs nothing, so few that a step is shared evenly
/// and that the copies of a strided tile stay in the second-level cache.
std::size_t tile_elements();

/// Another size for the layouts made from now on; returns the one before. No bit of a step depends
/// on it.
std::size_t set_tile_elements(std::size_t elements);

/// Space for the copies of one tile, reused from tile to tile.
class Scratch {
  public:
    void reserve(std::size_t bytes);
    std::byte* data() { return bytes_.get(); }

  private:
    struct Free {
        void operator()(std::byte* bytes) const;
    };
    std::unique_ptr<std::byte, Free> bytes_;
    std::size_t size_ = 0;
};

/// An array as the layout sees it; the shape is common to all.
struct Operand {
    const std::byte* data;
    const std::ptrdiff_t* strides;  // in bytes, as many as the shape has axes
};

class Layout {
  public:
    Layout() = default;

    /// The operands in the order of a kernel's. The first, the parameter, may have
    /// stride 0 only along axes of length 1.
    Layout(const std::vector<std::size_t>& shape, const std::vector<Operand>& operands,
           std::size_t item_size, std::size_t tile_elements);

    std::size_t tiles() const { return tiles_; }
    std::size_t elements() const { return elements_; }

    /// From the address of the element at index zero of an operand to that where the walk begins.
    std::ptrdiff_t offset(std::size_t operand) const { return offsets_[operand]; }

    /// What sweep needs of a scratch, in bytes.
    std::size_t scratch_bytes() const { return scratch_bytes_; }

    /// Runs the kernel over one tile. data: where the walk begins in each operand.
    void sweep(std::size_t tile, std::byte* const* data, sweep::Kernel kernel,
               const void* coefficients, Scratch& scratch) const noexcept;

  private:
    struct Axis {
        std::size_t size;
        std::size_t box;  // how far a tile reaches along this axis
        std::ptrdiff_t strides[rules::max_operands];
    };

    /// How the kernel gets at an operand's part of a tile.
    enum class Access {
        whole,   // the tile is contiguous in memory, in the box's dense order
        rows,    // each row of the tile is
        copied,  // neither: through the scratch
    };

    std::size_t fast_axis(std::size_t operand) const;
    void size_boxes(std::size_t tile_elements);
    Access access(std::size_t operand, bool aligned) const;
    void sweep_box(std::size_t tile, std::byte* const* data, sweep::Kernel kernel,
                   const void* coefficients, Scratch& scratch) const noexcept;
    void sweep_rows(const std::size_t* box, std::byte* const* begin, std::byte* const* dense,
                    sweep::Kernel kernel, const void* coefficients) const noexcept;

    std::size_t operands_ = 0;
    std::size_t item_size_ = 0;
    std::size_t tiles_ = 0;
    std::size_t elements_ = 0;
    std::size_t scratch_bytes_ = 0;
    bool flat_ = true;
    bool by_rows_ = false;
    std::ptrdiff_t offsets_[rules::max_operands] = {};
    Access access_[rules::max_operands] = {};
    std::vector<Axis> axes_;  // from the outermost to the innermost
};

}  // namespace schuss::engine
