// How arrays of one shape, each with strides of its own, are walked together: as a range of tiles.
//
// Elements of an update are independent, so the order of the walk is free. The axes are sorted by
// the first operand's strides, turned where that runs backwards, and merged where they run on in
// every operand. What is then one contiguous axis is flat, and a tile is a piece of it.
// Otherwise a tile is a box of axes, sized so that it runs along the fast axis of each operand;
// operands that the loop cannot take as they lie are copied into the box's dense order, and back if
// written. What rides along with a rule - an average, a copy, clearing the gradients - is done
// piece by piece of a tile, while the piece is in the first cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "numbers/dtype.hpp"
#include "rules/rule.hpp"
#include "sweep/level.hpp"

namespace schuss::engine {

/// What an array is to an update. The average of the parameter has the format that is computed in;
/// the copy is written only.
enum class Role : std::uint8_t { parameter, gradient, state, average, copy };

/// The arrays of an update, with those that ride along.
inline constexpr std::size_t max_arrays = rules::max_operands + 2;

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
    Role role;
    numbers::DType number;
    const std::byte* data;
    const std::ptrdiff_t* strides;  // in bytes, as many as the shape has axes
};

/// What is done to a tile.
struct Pass {
    const sweep::Level& level;
    sweep::Kernel kernel;  // nullptr: nothing but clearing gradients
    const void* coefficients;
    sweep::Kernel average;  // of the parameter; nullptr: none
    const void* average_coefficients;
    bool clear_gradients;          // afterwards
    std::uint64_t first;           // the index of the parameter's first element in memory
    const std::uint64_t* streams;  // the keys of rounding at random, for each state
};

class Layout {
  public:
    Layout() = default;

    /// The operands: the kernel's in its order, and after them those that ride along. The first,
    /// the parameter, may have stride 0 only along axes of length 1.
    Layout(const std::vector<std::size_t>& shape, const std::vector<Operand>& operands,
           std::size_t tile_elements);

    std::size_t tiles() const { return tiles_; }
    std::size_t elements() const { return elements_; }

    /// From the address of the element at index zero of an operand to that where the walk begins.
    std::ptrdiff_t offset(std::size_t operand) const { return offsets_[operand]; }

    /// What sweep needs of a scratch, in bytes.
    std::size_t scratch_bytes() const { return scratch_bytes_; }

    /// Passes over one tile. data: where the walk begins in each operand.
    void sweep(std::size_t tile, std::byte* const* data, const Pass& pass,
               Scratch& scratch) const noexcept;

  private:
    struct Axis {
        std::size_t size;
        std::size_t box;  // how far a tile reaches along this axis
        std::ptrdiff_t strides[max_arrays];
    };

    /// How the kernel gets at an operand's part of a tile.
    enum class Access : std::uint8_t {
        whole,   // the tile is contiguous in memory, in the box's dense order
        rows,    // each row of the tile is
        copied,  // neither: through the scratch
    };

    /// What is known of an operand.
    struct OperandInfo {
        Role role = Role::parameter;
        numbers::DType number = numbers::DType::float32;
        Access access = Access::whole;
        std::uint8_t item_size = 0;
    };

    std::size_t fast_axis(std::size_t operand) const;
    void size_boxes(std::size_t tile_elements);
    Access access(std::size_t operand, bool aligned) const;
    /// Moves the pointers on.
    void sweep_dense(std::byte** at, std::size_t count, const Pass& pass) const noexcept;
    void sweep_piece(std::byte* const* at, std::size_t count, const Pass& pass) const noexcept;
    std::uint64_t index_of(std::byte* const* at, const Pass& pass) const noexcept;
    void sweep_box(std::size_t tile, std::byte* const* data, const Pass& pass,
                   Scratch& scratch) const noexcept;
    void sweep_rows(const std::size_t* box, std::byte* const* begin, std::byte* const* dense,
                    const Pass& pass) const noexcept;

    std::size_t operands_ = 0;
    std::size_t tiles_ = 0;
    std::size_t elements_ = 0;
    std::size_t scratch_bytes_ = 0;
    bool rides_along_ = false;                // an average, or a copy
    const std::byte* random_from_ = nullptr;  // the memory of a state that is rounded at random
    bool flat_ = true;
    bool by_rows_ = false;
    std::ptrdiff_t offsets_[max_arrays] = {};
    OperandInfo known_[max_arrays] = {};
    std::vector<Axis> axes_;  // from the outermost to the innermost
};

}  // namespace schuss::engine
