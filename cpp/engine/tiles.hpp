// How arrays of one shape, each with its own strides, are cut into tiles.
//
// The elements of an update are independent, so they can be updated in any order. Axes are sorted
// by the strides of the first array, flipped where these are negative, and merged where they are
// contiguous in every array. If one contiguous axis remains, the layout is flat and a tile is a
// piece of that axis. Otherwise a tile is a box, sized so that it extends along the fastest axis of
// each array. Arrays that the kernel cannot read in place are copied into the dense order of the
// box. If they are written, they are copied back.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/axes.hpp"
#include "numbers/dtype.hpp"
#include "rules/rule.hpp"

namespace schuss::engine {

/// The role of an array in an update. The average has the parameter's compute dtype. The copy is
/// only written.
enum class Role : std::uint8_t { parameter, gradient, state, average, copy };

/// The arrays of an update: those of the kernel, an average, and a copy.
inline constexpr std::size_t max_arrays = rules::max_operands + 2;

/// The number of elements in a tile. A tile is large enough that the cost of claiming it is
/// negligible, and small enough that a step is shared evenly and that the copies of a strided tile
/// stay in the second-level cache.
std::size_t tile_elements();

/// Sets the size for layouts that are made from now on, and returns the previous one. The results
/// of a step do not depend on it.
std::size_t set_tile_elements(std::size_t elements);

/// An array of an update. All arrays have the same shape.
struct Operand {
    Role role;
    numbers::DType dtype;           // of a component
    const std::byte* data;          // the element at index zero
    const std::ptrdiff_t* strides;  // in bytes, one for each axis of the shape
    std::uint8_t components = 1;    // of an element: 2 if it is a complex number

    std::size_t item_size() const { return numbers::size_of(dtype) * components; }
};

/// How a kernel reads and writes the part of an array that is in a tile.
enum class Access : std::uint8_t {
    contiguous,  // in place: the tile is contiguous in memory, in the box's dense order
    rowwise,     // in place, row by row: each row of the tile is contiguous
    buffered,    // through a copy
};

/// What the layout keeps of an operand.
struct OperandInfo {
    Role role = Role::parameter;
    numbers::DType dtype = numbers::DType::float32;
    Access access = Access::contiguous;
    std::uint8_t item_size = 0;
    std::uint8_t components = 1;
};

/// An axis of a layout.
struct TileAxis {
    std::size_t size;
    std::size_t box;  // the elements of a tile along this axis
    std::array<std::ptrdiff_t, max_arrays> strides;

    std::size_t boxes() const { return (size + box - 1) / box; }
};

class Layout {
  public:
    Layout() = default;

    /// Operands are those of the kernel, in its order, and then the average and the copy. The
    /// first, the parameter, has stride 0 only along axes of length 1.
    Layout(const std::vector<std::size_t>& shape, const std::vector<Operand>& operands,
           std::size_t tile_elements);

    std::size_t tiles() const { return tiles_; }
    std::size_t elements() const { return elements_; }

    /// The size of all operands together.
    std::size_t bytes() const;

    /// The components of an element of the parameter: 2 if the elements are complex numbers.
    std::size_t components() const { return operands_[0].components; }

    /// From the outermost axis to the innermost.
    const std::vector<TileAxis>& axes() const { return axes_; }
    std::size_t operands() const { return operand_count_; }
    const OperandInfo& operand(std::size_t k) const { return operands_[k]; }

    /// The distance in bytes from an operand's element at index zero to the element where its
    /// traversal begins.
    std::ptrdiff_t offset(std::size_t operand) const { return offsets_[operand]; }

    /// Whether all operands are contiguous along a single axis.
    bool is_flat() const { return is_flat_; }

    /// Whether an operand must be accessed row by row.
    bool has_rows() const { return has_rows_; }

    /// Whether there is an average or a copy.
    bool has_extras() const { return has_extras_; }

    /// The lowest address of the first state if states are rounded stochastically; otherwise
    /// nullptr. All states of a parameter have the same strides, so the address of an element of
    /// this state determines its index.
    const std::byte* rounded_state() const { return rounded_state_; }

    /// The size of the scratch that a tile needs, in bytes.
    std::size_t scratch_bytes() const { return scratch_bytes_; }

  private:
    void choose_boxes(std::size_t tile_elements);
    std::size_t fastest_axis(std::size_t operand) const;
    Access choose_access(std::size_t operand, bool is_aligned) const;

    std::size_t operand_count_ = 0;
    std::size_t tiles_ = 0;
    std::size_t elements_ = 0;
    std::size_t scratch_bytes_ = 0;
    const std::byte* rounded_state_ = nullptr;
    bool is_flat_ = true;
    bool has_rows_ = false;
    bool has_extras_ = false;
    std::ptrdiff_t offsets_[max_arrays] = {};
    OperandInfo operands_[max_arrays] = {};
    std::vector<TileAxis> axes_;
};

}  // namespace schuss::engine
