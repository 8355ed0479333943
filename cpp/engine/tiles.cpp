#include "engine/tiles.hpp"

#include <atomic>
#include <stdexcept>

#include "engine/copy.hpp"

namespace schuss::engine {
namespace {

std::atomic<std::size_t> elements_per_tile = 16384;

// For rows shorter than this, a copy is faster than a kernel call for each row.
constexpr std::size_t shortest_row = 64;

// The size of a box along the fastest axis of an operand whose fastest axis is not the innermost: a
// few consecutive cache lines, so that memory is read in order.
constexpr std::size_t crossing_run = 64;

// Such a box is this many times larger than other tiles, so that the other operands still have rows
// of some length in it.
constexpr std::size_t crossing_tiles = 2;

/// The lowest address among the elements of an array.
const std::byte* lowest_address(const Operand& array, const std::vector<std::size_t>& shape) {
    const std::byte* lowest = array.data;
    for (std::size_t i = 0; i < shape.size(); ++i) {
        if (shape[i] == 0 || array.strides[i] >= 0) continue;
        lowest += static_cast<std::ptrdiff_t>(shape[i] - 1) * array.strides[i];
    }
    return lowest;
}

}  // namespace

std::size_t tile_elements() {
    return elements_per_tile.load(std::memory_order_relaxed);
}

std::size_t set_tile_elements(std::size_t elements) {
    if (elements == 0 || elements > std::size_t{1} << 32) {
        throw std::invalid_argument("the elements of a tile must be from 1 to 2**32");
    }
    return elements_per_tile.exchange(elements, std::memory_order_relaxed);
}

Layout::Layout(const std::vector<std::size_t>& shape, const std::vector<Operand>& operands,
               std::size_t tile_elements)
    : operand_count_(operands.size()) {
    for (std::size_t k = 0; k < operand_count_; ++k) {
        const auto& [role, dtype, data, strides, components] = operands[k];
        operands_[k].role = role;
        operands_[k].dtype = dtype;
        operands_[k].item_size = static_cast<std::uint8_t>(operands[k].item_size());
        operands_[k].components = components;
        has_extras_ = has_extras_ || role == Role::average || role == Role::copy;
        const bool is_first_state = k == rules::first_state_operand && role == Role::state;
        if (is_first_state && dtype != numbers::compute_dtype(dtype)) {
            rounded_state_ = lowest_address(operands[k], shape);
        }
    }
    axes_.reserve(shape.size());
    for (std::size_t i = 0; i < shape.size(); ++i) {
        if (shape[i] == 0) return;
        if (shape[i] == 1) continue;
        TileAxis& axis = axes_.emplace_back(TileAxis{shape[i], 1, {}});
        for (std::size_t k = 0; k < operand_count_; ++k) axis.strides[k] = operands[k].strides[i];
    }
    flip_negative(axes_, &TileAxis::strides, offsets_);
    sort_by_stride(axes_, [](const TileAxis& axis) { return axis.strides[0]; });
    merge_adjacent(axes_, &TileAxis::strides);
    if (axes_.empty()) {
        axes_.push_back({1, 1, {}});
        for (std::size_t k = 0; k < operand_count_; ++k) {
            axes_[0].strides[k] = static_cast<std::ptrdiff_t>(operands_[k].item_size);
        }
    }

    choose_boxes(tile_elements);
    tiles_ = elements_ = 1;
    std::size_t box_elements = 1;
    for (const TileAxis& axis : axes_) {
        tiles_ *= axis.boxes();
        elements_ *= axis.size;
        box_elements *= axis.box;
    }
    for (std::size_t k = 0; k < operand_count_; ++k) {
        OperandInfo& operand = operands_[k];
        auto bits = reinterpret_cast<std::uintptr_t>(operands[k].data);
        for (const TileAxis& axis : axes_) bits |= magnitude(axis.strides[k]);
        operand.access = choose_access(k, bits % numbers::size_of(operand.dtype) == 0);
        has_rows_ = has_rows_ || operand.access == Access::rowwise;
        is_flat_ = is_flat_ && operand.access == Access::contiguous && axes_.size() == 1;
        if (operand.access != Access::buffered) continue;
        scratch_bytes_ += whole_cache_lines(box_elements * operand.item_size);
    }
}

std::size_t Layout::bytes() const {
    std::size_t item_sizes = 0;
    for (std::size_t k = 0; k < operand_count_; ++k) item_sizes += operands_[k].item_size;
    return elements_ * item_sizes;
}

std::size_t Layout::fastest_axis(std::size_t operand) const {
    std::size_t fastest = axes_.size() - 1;
    for (std::size_t i = axes_.size(); i-- > 0;) {
        const std::size_t stride = magnitude(axes_[i].strides[operand]);
        if (stride != 0 && stride < magnitude(axes_[fastest].strides[operand])) fastest = i;
    }
    return fastest;
}

void Layout::choose_boxes(std::size_t tile_elements) {
    bool crossing = false;
    for (std::size_t k = 0; k < operand_count_; ++k) {
        crossing = crossing || fastest_axis(k) != axes_.size() - 1;
    }
    std::size_t room = crossing ? crossing_tiles * tile_elements : tile_elements;
    const auto extend = [&room](TileAxis& axis, std::size_t limit) {
        const std::size_t box = std::min({axis.size, limit, axis.box * room});
        room = room * axis.box / box;
        axis.box = box;
    };
    for (std::size_t k = 0; crossing && k < operand_count_; ++k) {
        TileAxis& axis = axes_[fastest_axis(k)];
        if (axis.box == 1) extend(axis, crossing_run);
    }
    for (std::size_t i = axes_.size(); i-- > 0;) extend(axes_[i], axes_[i].size);
}

Access Layout::choose_access(std::size_t operand, bool is_aligned) const {
    if (!is_aligned) return Access::buffered;
    bool is_contiguous = true;
    bool inner_axes_are_complete = true;
    const auto item_size = static_cast<std::ptrdiff_t>(operands_[operand].item_size);
    std::ptrdiff_t dense = item_size;
    for (std::size_t i = axes_.size(); i-- > 0;) {
        const TileAxis& axis = axes_[i];
        if (axis.box == 1) continue;
        is_contiguous = is_contiguous && inner_axes_are_complete && axis.strides[operand] == dense;
        inner_axes_are_complete = inner_axes_are_complete && axis.box == axis.size;
        dense *= static_cast<std::ptrdiff_t>(axis.box);
    }
    if (is_contiguous) return Access::contiguous;
    const TileAxis& row = axes_.back();
    const bool has_contiguous_rows = row.strides[operand] == item_size;
    // The random bits of an element depend on its address in a state, so that is never copied.
    const bool is_rounded = operands_[operand].role == Role::state && rounded_state_ != nullptr;
    return has_contiguous_rows && (row.box >= shortest_row || is_rounded) ? Access::rowwise
                                                                          : Access::buffered;
}

}  // namespace schuss::engine
