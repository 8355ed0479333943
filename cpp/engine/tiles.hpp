// How arrays of one shape, each with its own strides, are cut into tiles.
//
// The elements of an update are independent, so they can be updated in any order. Axes are sorted
// by the strides of the first array, flipped where these are negative, and merged where they are
// contiguous in every array. If one contiguous axis remains, the layout is flat and a tile is a
// piece of that axis. Otherwise a tile is a box, sized so that it extends along the fastest axis of
// each array. Arrays that the kernel cannot read in place are copied into the dense order of the
// box. If they are written, they are copied back.
//
// Where a state has blocks, which have the order of the parameter's memory, a tile is a run of
// elements in that order instead, and of whole blocks. The same where the parameter is rounded at
// random, which depends on the index of an element in that order, and where it is updated by rows.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/axes.hpp"
#include "engine/memory_order.hpp"
#include "engine/operand.hpp"
#include "numbers/dtype.hpp"

namespace schuss::engine {

/// The number of elements in a tile of a flat layout; other tiles have a few times as many. A tile
/// is large enough that the cost of claiming it is negligible, and small enough that a step is
/// shared evenly and that the copies of a strided tile stay in the second-level cache.
std::size_t tile_elements();

/// Sets the size for layouts that are made from now on, and returns the previous one. The results
/// of a step do not depend on it.
std::size_t set_tile_elements(std::size_t elements);

/// How a kernel reads and writes the part of an array that is in a tile.
enum class Access : std::uint8_t {
    contiguous,  // in place: the tile is contiguous in memory, in its dense order
    rowwise,     // in place, row by row: each row of the tile is contiguous
    buffered,    // through a copy
};

/// What the layout keeps of an operand.
struct OperandInfo {
    Role role = Role::parameter;
    numbers::DType dtype = numbers::DType::float32;
    Access access = Access::contiguous;
    std::uint8_t item_size = 0;  // of a block if it has blocks
    std::uint8_t components = 1;
    std::uint8_t block = 1;  // elements
    numbers::Master master = numbers::Master::none;

    /// The size of this many elements, which begin with a block.
    std::size_t bytes(std::size_t elements) const {
        return (block == 1 ? elements : (elements + block - 1) / block) * item_size;
    }
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

    /// Operands are those of the kernel, in its order, and then the master, the average and the
    /// copy. The first, the parameter, has stride 0 only along axes of length 1. row: tiles are
    /// runs of a multiple of this many elements; 1: they need not be.
    Layout(const std::vector<std::size_t>& shape, const std::vector<Operand>& operands,
           std::size_t tile_elements, std::size_t row = 1);

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

    /// Whether elements are rounded at random when they are written.
    bool rounds_at_random() const { return rounds_at_random_; }

    /// The lowest address of the first state if states are rounded at random and tiles are boxes;
    /// otherwise nullptr. All states of a parameter have the same strides then, so the address of
    /// an element of this state determines its index.
    const std::byte* rounded_state() const { return rounded_state_; }

    /// Whether tiles are runs in the order of the parameter's memory.
    bool has_runs() const { return has_runs_; }

    /// The elements of a tile, but for the last, if tiles are runs or the layout is flat.
    std::size_t run() const { return run_; }

    /// Whether a run can be cut only at multiples of a block.
    bool has_blocks() const { return block_ > 1; }

    /// The order of the elements of an operand, if tiles are runs and it is buffered.
    const MemoryOrder& order(std::size_t operand) const { return orders_[operand]; }

    /// The operand that is the master; `operands()` if there is none.
    std::size_t master() const { return master_; }
    bool has_master() const { return master_ < operand_count_; }

    /// The size of the scratch that a tile needs, in bytes.
    std::size_t scratch_bytes() const { return scratch_bytes_; }

  private:
    void cut_into_runs(const std::vector<std::size_t>& shape, const std::vector<Operand>& operands,
                       std::size_t tile_elements);
    void cut_into_boxes(const std::vector<std::size_t>& shape, const std::vector<Operand>& operands,
                        std::size_t tile_elements);
    void choose_boxes(std::size_t tile_elements);
    std::size_t fastest_axis(std::size_t operand) const;
    Access choose_access(std::size_t operand, bool is_aligned) const;

    std::size_t operand_count_ = 0;
    std::size_t tiles_ = 0;
    std::size_t elements_ = 0;
    std::size_t scratch_bytes_ = 0;
    std::size_t master_ = 0;
    std::size_t run_ = 0;
    std::size_t block_ = 1;  // the largest block of an operand
    std::size_t row_ = 1;    // of whose multiples a run has elements
    std::vector<MemoryOrder> orders_;
    const std::byte* rounded_state_ = nullptr;
    bool rounds_at_random_ = false;
    bool has_runs_ = false;
    bool is_flat_ = true;
    bool has_rows_ = false;
    bool has_extras_ = false;
    std::ptrdiff_t offsets_[max_arrays] = {};
    OperandInfo operands_[max_arrays] = {};
    std::vector<TileAxis> axes_;
};

}  // namespace schuss::engine
