#include "engine/layout.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <stdexcept>

#include "engine/copy.hpp"

namespace schuss::engine {
namespace {

std::atomic<std::size_t> elements_per_tile = 16384;

// A row shorter than this costs more in calls of the kernel than in a copy.
constexpr std::size_t shortest_row = 64;

// How far a box reaches along the fast axis of an operand that lies across the others: a few cache
// lines in a row, so that memory is read as it comes.
constexpr std::size_t crossing_run = 64;

// Such a box is larger than other tiles, so that the others have rows of some length in it.
constexpr std::size_t crossing_tiles = 2;

std::size_t round_up(std::size_t n, std::size_t unit) {
    return (n + unit - 1) / unit * unit;
}

}  // namespace

std::size_t tile_elements() {
    return elements_per_tile.load(std::memory_order_relaxed);
}

std::size_t set_tile_elements(std::size_t elements) {
    if (elements == 0 || elements > std::size_t{1} << 32) {
        throw std::invalid_argument("a tile has from 1 to 2**32 elements");
    }
    return elements_per_tile.exchange(elements, std::memory_order_relaxed);
}

void Scratch::Free::operator()(std::byte* bytes) const {
    ::operator delete(bytes, std::align_val_t{cache_line});
}

void Scratch::reserve(std::size_t bytes) {
    if (bytes <= size_) return;
    bytes_.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{cache_line})));
    size_ = bytes;
}

Layout::Layout(const std::vector<std::size_t>& shape, const std::vector<Operand>& operands,
               std::size_t item_size, std::size_t tile_elements)
    : operands_(operands.size()), item_size_(item_size) {
    for (std::size_t i = 0; i < shape.size(); ++i) {
        if (shape[i] == 0) return;
        if (shape[i] == 1) continue;
        Axis axis{shape[i], 1, {}};
        std::size_t forward = 0, backward = 0;
        for (std::size_t k = 0; k < operands_; ++k) {
            axis.strides[k] = operands[k].strides[i];
            forward += axis.strides[k] > 0;
            backward += axis.strides[k] < 0;
        }
        for (std::size_t k = 0; backward > forward && k < operands_; ++k) {
            offsets_[k] += static_cast<std::ptrdiff_t>(axis.size - 1) * axis.strides[k];
            axis.strides[k] = -axis.strides[k];
        }
        axes_.push_back(axis);
    }
    std::stable_sort(axes_.begin(), axes_.end(), [](const Axis& a, const Axis& b) {
        return magnitude(a.strides[0]) > magnitude(b.strides[0]);
    });
    for (std::size_t outer = axes_.size(); outer-- > 1;) {  // merge axis outer into outer - 1
        Axis& inner = axes_[outer];
        Axis& before = axes_[outer - 1];
        const bool runs_on = std::equal(before.strides, before.strides + operands_, inner.strides,
                                        [&inner](std::ptrdiff_t a, std::ptrdiff_t b) {
                                            return a == b * static_cast<std::ptrdiff_t>(inner.size);
                                        });
        if (!runs_on) continue;
        inner.size *= before.size;
        axes_.erase(axes_.begin() + static_cast<std::ptrdiff_t>(outer) - 1);
    }
    if (axes_.empty()) {
        axes_.push_back({1, 1, {}});
        std::fill_n(axes_[0].strides, operands_, static_cast<std::ptrdiff_t>(item_size));
    }

    bool aligned[rules::max_operands];
    for (std::size_t k = 0; k < operands_; ++k) {
        auto bits = reinterpret_cast<std::uintptr_t>(operands[k].data);
        for (const Axis& axis : axes_) bits |= magnitude(axis.strides[k]);
        aligned[k] = bits % item_size == 0;
    }
    size_boxes(tile_elements);
    tiles_ = elements_ = 1;
    std::size_t box_elements = 1;
    for (const Axis& axis : axes_) {
        tiles_ *= (axis.size + axis.box - 1) / axis.box;
        elements_ *= axis.size;
        box_elements *= axis.box;
    }
    for (std::size_t k = 0; k < operands_; ++k) {
        access_[k] = access(k, aligned[k]);
        by_rows_ = by_rows_ || access_[k] == Access::rows;
        if (access_[k] == Access::copied) {
            scratch_bytes_ += round_up(box_elements * item_size, cache_line);
        }
        flat_ = flat_ && access_[k] == Access::whole && axes_.size() == 1;
    }
}

std::size_t Layout::fast_axis(std::size_t operand) const {
    std::size_t fast = axes_.size() - 1;
    for (std::size_t i = axes_.size(); i-- > 0;) {
        const std::size_t stride = magnitude(axes_[i].strides[operand]);
        if (stride != 0 && stride < magnitude(axes_[fast].strides[operand])) fast = i;
    }
    return fast;
}

void Layout::size_boxes(std::size_t tile_elements) {
    bool crossing = false;
    for (std::size_t k = 0; k < operands_; ++k) {
        crossing = crossing || fast_axis(k) != axes_.size() - 1;
    }
    std::size_t room = crossing ? crossing_tiles * tile_elements : tile_elements;
    const auto reach = [&room](Axis& axis, std::size_t most) {
        const std::size_t box = std::min({axis.size, most, axis.box * room});
        room = room * axis.box / box;
        axis.box = box;
    };
    for (std::size_t k = 0; crossing && k < operands_; ++k) {
        Axis& axis = axes_[fast_axis(k)];
        if (axis.box == 1) reach(axis, crossing_run);
    }
    for (std::size_t i = axes_.size(); i-- > 0;) reach(axes_[i], axes_[i].size);
}

Layout::Access Layout::access(std::size_t operand, bool aligned) const {
    if (!aligned) return Access::copied;
    bool whole = true;
    bool inner_complete = true;
    std::size_t dense = item_size_;
    for (std::size_t i = axes_.size(); i-- > 0;) {
        const Axis& axis = axes_[i];
        if (axis.box == 1) continue;
        whole =
            whole && inner_complete && axis.strides[operand] == static_cast<std::ptrdiff_t>(dense);
        inner_complete = inner_complete && axis.box == axis.size;
        dense *= axis.box;
    }
    if (whole) return Access::whole;
    const Axis& row = axes_.back();
    const bool contiguous = row.strides[operand] == static_cast<std::ptrdiff_t>(item_size_);
    return contiguous && row.box >= shortest_row ? Access::rows : Access::copied;
}

void Layout::sweep(std::size_t tile, std::byte* const* data, sweep::Kernel kernel,
                   const void* coefficients, Scratch& scratch) const noexcept {
    if (!flat_) return sweep_box(tile, data, kernel, coefficients, scratch);
    const Axis& axis = axes_[0];
    const std::size_t begin = tile * axis.box;
    void* operands[rules::max_operands];
    for (std::size_t k = 0; k < operands_; ++k) {
        // Not by the items' size: a tile of one element is contiguous whatever the stride is.
        operands[k] = data[k] + static_cast<std::ptrdiff_t>(begin) * axis.strides[k];
    }
    kernel(operands, std::min(axis.box, axis.size - begin), coefficients);
}

void Layout::sweep_box(std::size_t tile, std::byte* const* data, sweep::Kernel kernel,
                       const void* coefficients, Scratch& scratch) const noexcept {
    // Where this tile's box begins in each operand, and how far it reaches.
    std::byte* begin[rules::max_operands];
    std::copy_n(data, operands_, begin);
    std::size_t box[max_axes];
    std::size_t count = 1;
    for (std::size_t i = axes_.size(); i-- > 0;) {
        const Axis& axis = axes_[i];
        const std::size_t boxes = (axis.size + axis.box - 1) / axis.box;
        const std::size_t at = tile % boxes * axis.box;
        tile /= boxes;
        box[i] = std::min(axis.box, axis.size - at);
        count *= box[i];
        for (std::size_t k = 0; k < operands_; ++k) {
            begin[k] += static_cast<std::ptrdiff_t>(at) * axis.strides[k];
        }
    }

    CopyAxes copied;
    const auto copy_axes = [&](std::size_t operand, bool back) -> CopyAxes& {
        copied.count = 0;
        auto dense = static_cast<std::ptrdiff_t>(item_size_);
        for (std::size_t i = axes_.size(); i-- > 0;) {
            if (box[i] == 1) continue;
            const std::ptrdiff_t stride = axes_[i].strides[operand];
            copied.at[copied.count++] =
                back ? CopyAxis{box[i], dense, stride} : CopyAxis{box[i], stride, dense};
            dense *= static_cast<std::ptrdiff_t>(box[i]);
        }
        return copied;
    };

    std::byte* dense[rules::max_operands];
    std::byte* free = scratch.data();
    for (std::size_t k = 0; k < operands_; ++k) {
        dense[k] = begin[k];
        if (access_[k] != Access::copied) continue;
        dense[k] = free;
        free += round_up(count * item_size_, cache_line);
        copy_box(copy_axes(k, false), item_size_, begin[k], dense[k]);
    }

    if (by_rows_) {
        sweep_rows(box, begin, dense, kernel, coefficients);
    } else {
        void* operands[rules::max_operands];
        std::copy_n(dense, operands_, operands);
        kernel(operands, count, coefficients);
    }

    for (std::size_t k = 0; k < operands_; ++k) {
        if (k == rules::gradient_operand || access_[k] != Access::copied) continue;
        copy_box(copy_axes(k, true), item_size_, dense[k], begin[k]);
    }
}

void Layout::sweep_rows(const std::size_t* box, std::byte* const* begin, std::byte* const* dense,
                        sweep::Kernel kernel, const void* coefficients) const noexcept {
    const std::size_t inner = axes_.size() - 1;
    const std::size_t row_bytes = box[inner] * item_size_;
    std::size_t index[max_axes] = {};
    std::byte* at[rules::max_operands];
    for (std::size_t k = 0; k < operands_; ++k) {
        at[k] = access_[k] == Access::rows ? begin[k] : dense[k];
    }
    for (;;) {
        void* operands[rules::max_operands];
        std::copy_n(at, operands_, operands);
        kernel(operands, box[inner], coefficients);

        std::size_t axis = inner;  // the axis along which the next row lies
        while (axis > 0 && ++index[axis - 1] == box[axis - 1]) index[--axis] = 0;
        if (axis == 0) return;
        for (std::size_t k = 0; k < operands_; ++k) {
            if (access_[k] != Access::rows) {
                at[k] += row_bytes;
                continue;
            }
            at[k] += axes_[axis - 1].strides[k];
            for (std::size_t i = axis; i < inner; ++i) {
                at[k] -= static_cast<std::ptrdiff_t>(box[i] - 1) * axes_[i].strides[k];
            }
        }
    }
}

}  // namespace schuss::engine
