#include "engine/tiles.hpp"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "engine/copy.hpp"

namespace schuss::engine {
namespace {

std::atomic<std::size_t> elements_per_tile = 4096;

// For rows shorter than this, a copy is faster than a kernel call for each row.
constexpr std::size_t shortest_row = 64;

// The size of a box along the fastest axis of an operand whose fastest axis is not the innermost: a
// few consecutive cache lines, so that memory is read in order.
constexpr std::size_t crossing_run = 64;

// A box has this many times the elements of a flat tile, so that its rows are long. If the fastest
// axes of operands differ, it has more, so that the other operands still have rows of some length.
constexpr std::size_t box_tiles = 4, crossing_tiles = 8;

/// The lowest address among the elements of an array.
const std::byte* lowest_address(const Operand& array, const std::vector<std::size_t>& shape) {
    const std::byte* lowest = array.data;
    for (std::size_t i = 0; i < shape.size(); ++i) {
        if (array.strides[i] >= 0) continue;
        lowest += static_cast<std::ptrdiff_t>(shape[i] - 1) * array.strides[i];
    }
    return lowest;
}

// A run is at most this many flat tiles long where that lets whole cache lines be read.
constexpr std::size_t longest_run_tiles = 128;

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
               std::size_t tile_elements, std::size_t row)
    : operand_count_(operands.size()), master_(operands.size()), row_(row), has_runs_(row > 1) {
    for (std::size_t k = 0; k < operand_count_; ++k) {
        const Operand& operand = operands[k];
        operands_[k] = {.role = operand.role,
                        .dtype = operand.dtype,
                        .item_size = static_cast<std::uint8_t>(operand.item_size()),
                        .components = operand.components,
                        .block = static_cast<std::uint8_t>(operand.block()),
                        .master = operand.master};
        has_extras_ = has_extras_ || operand.role == Role::average || operand.role == Role::copy;
        rounds_at_random_ = rounds_at_random_ || operand.is_rounded_at_random();
        const bool is_in_boxes = operand.is_rounded_state() && operand.block() == 1;
        has_runs_ = has_runs_ || (operand.is_rounded_at_random() && !is_in_boxes);
        if (operand.role == Role::master) master_ = k;
        block_ = std::max(block_, operand.block());
    }
    if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return;
    if (has_runs_) {
        cut_into_runs(shape, operands, tile_elements);
    } else {
        cut_into_boxes(shape, operands, tile_elements);
    }
}

void Layout::cut_into_runs(const std::vector<std::size_t>& shape,
                           const std::vector<Operand>& operands, std::size_t tile_elements) {
    elements_ = 1;
    for (const std::size_t size : shape) elements_ *= size;
    orders_.resize(operand_count_);
    std::size_t buffered_item_sizes = 0, run = tile_elements;
    for (std::size_t k = 0; k < operand_count_; ++k) {
        if (operands_[k].block > 1) continue;
        orders_[k] = MemoryOrder(shape, operands[0], operands[k]);
        offsets_[k] = orders_[k].offset();
        if (orders_[k].contiguous()) continue;
        is_flat_ = false;
        operands_[k].access = Access::buffered;
        buffered_item_sizes += operands_[k].item_size;
        const std::size_t most = longest_run_tiles * tile_elements;
        run = std::max({run, box_tiles * tile_elements, std::min(orders_[k].whole_lines(), most)});
    }
    const std::size_t unit = std::max(block_, row_);  // state in blocks has no rows
    run_ = (run + unit - 1) / unit * unit;
    tiles_ = (elements_ + run_ - 1) / run_;
    const std::size_t longest = std::min(run_, elements_);
    scratch_bytes_ = whole_cache_lines(longest * buffered_item_sizes) + operand_count_ * cache_line;
}

void Layout::cut_into_boxes(const std::vector<std::size_t>& shape,
                            const std::vector<Operand>& operands, std::size_t tile_elements) {
    if (operand_count_ > rules::first_state_operand &&
        operands[rules::first_state_operand].is_rounded_state()) {
        rounded_state_ = lowest_address(operands[rules::first_state_operand], shape);
    }
    axes_.reserve(shape.size());
    for (std::size_t i = 0; i < shape.size(); ++i) {
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
        operand.access = choose_access(k, bits % operands[k].alignment() == 0);
        has_rows_ = has_rows_ || operand.access == Access::rowwise;
        // A tile of one element is contiguous with any stride; several of them need not be.
        const TileAxis& axis = axes_[0];
        const bool has_run = axis.box > 1 || axis.size == 1 ||
                             axis.strides[k] == static_cast<std::ptrdiff_t>(operand.item_size);
        is_flat_ = is_flat_ && operand.access == Access::contiguous && axes_.size() == 1 && has_run;
        if (operand.access != Access::buffered) continue;
        scratch_bytes_ += whole_cache_lines(box_elements * operand.item_size);
    }
    if (is_flat_) run_ = axes_[0].box;
}

std::size_t Layout::bytes() const {
    std::size_t bytes = 0;
    for (std::size_t k = 0; k < operand_count_; ++k) bytes += operands_[k].bytes(elements_);
    return bytes;
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
    const std::size_t tiles = crossing ? crossing_tiles : axes_.size() > 1 ? box_tiles : 1;
    std::size_t room = tiles * tile_elements;
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
