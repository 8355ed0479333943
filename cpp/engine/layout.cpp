#include "engine/layout.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
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

// What rides along with a rule uses the parameter again, after so many elements.
constexpr std::size_t elements_per_piece = 4096;

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
               std::size_t tile_elements)
    : operands_(operands.size()) {
    for (std::size_t k = 0; k < operands_; ++k) {
        const auto& [role, number, data, strides] = operands[k];
        known_[k].role = role;
        known_[k].number = number;
        known_[k].item_size = static_cast<std::uint8_t>(numbers::size_of(number));
        rides_along_ = rides_along_ || role == Role::average || role == Role::copy;
        // All states lie alike: the first tells where an element is.
        if (k != rules::first_state_operand || role != Role::state) continue;
        if (number == numbers::compute_dtype(number)) continue;
        random_from_ = data;
        for (std::size_t i = 0; i < shape.size(); ++i) {
            const bool backwards = shape[i] > 0 && strides[i] < 0;
            if (backwards) random_from_ += static_cast<std::ptrdiff_t>(shape[i] - 1) * strides[i];
        }
    }
    for (std::size_t i = 0; i < shape.size(); ++i) {
        if (shape[i] == 0) return;
        if (shape[i] == 1) continue;
        Axis axis{shape[i], 1, {}};
        // States run as their parameter does, so that these all run forwards.
        const bool turned = operands[rules::parameter_operand].strides[i] < 0;
        for (std::size_t k = 0; k < operands_; ++k) {
            const std::ptrdiff_t stride = operands[k].strides[i];
            axis.strides[k] = turned ? -stride : stride;
            if (turned) offsets_[k] += static_cast<std::ptrdiff_t>(axis.size - 1) * stride;
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
        for (std::size_t k = 0; k < operands_; ++k) {
            axes_[0].strides[k] = static_cast<std::ptrdiff_t>(known_[k].item_size);
        }
    }

    bool aligned[max_arrays];
    for (std::size_t k = 0; k < operands_; ++k) {
        auto bits = reinterpret_cast<std::uintptr_t>(operands[k].data);
        for (const Axis& axis : axes_) bits |= magnitude(axis.strides[k]);
        aligned[k] = bits % known_[k].item_size == 0;
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
        OperandInfo& known = known_[k];
        known.access = access(k, aligned[k]);
        by_rows_ = by_rows_ || known.access == Access::rows;
        flat_ = flat_ && known.access == Access::whole && axes_.size() == 1;
        if (known.access != Access::copied) continue;
        scratch_bytes_ += round_up(box_elements * known.item_size, cache_line);
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
    const std::size_t item_size = known_[operand].item_size;
    std::size_t dense = item_size;
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
    const bool contiguous = row.strides[operand] == static_cast<std::ptrdiff_t>(item_size);
    // The bits that an element is rounded with come from its place in memory: it is not copied.
    const bool at_random = known_[operand].role == Role::state && random_from_ != nullptr;
    return contiguous && (row.box >= shortest_row || at_random) ? Access::rows : Access::copied;
}

void Layout::sweep(std::size_t tile, std::byte* const* data, const Pass& pass,
                   Scratch& scratch) const noexcept {
    if (!flat_) return sweep_box(tile, data, pass, scratch);
    const Axis& axis = axes_[0];
    const std::size_t begin = tile * axis.box;
    std::byte* dense[max_arrays];
    for (std::size_t k = 0; k < operands_; ++k) {
        // Not by the items' size: a tile of one element is contiguous whatever the stride is.
        dense[k] = data[k] + static_cast<std::ptrdiff_t>(begin) * axis.strides[k];
    }
    sweep_dense(dense, std::min(axis.box, axis.size - begin), pass);
}

void Layout::sweep_dense(std::byte** at, std::size_t count, const Pass& pass) const noexcept {
    for (;;) {
        std::size_t piece = rides_along_ ? std::min(count, elements_per_piece) : count;
        if (random_from_ != nullptr) {
            // A stream of random bits has 2^32 of them.
            constexpr std::uint64_t most = std::uint64_t{1} << 32;
            piece = std::min(piece, static_cast<std::size_t>(most - index_of(at, pass) % most));
        }
        sweep_piece(at, piece, pass);
        count -= piece;
        if (count == 0) return;
        for (std::size_t k = 0; k < operands_; ++k) at[k] += piece * known_[k].item_size;
    }
}

std::uint64_t Layout::index_of(std::byte* const* at, const Pass& pass) const noexcept {
    constexpr std::size_t state = rules::first_state_operand;
    const auto bytes = static_cast<std::size_t>(at[state] - random_from_);
    return pass.first + bytes / known_[state].item_size;
}

void Layout::sweep_piece(std::byte* const* at, std::size_t count, const Pass& pass) const noexcept {
    const auto clear = [this, at, count] {
        const std::size_t bytes = count * known_[rules::gradient_operand].item_size;
        std::memset(at[rules::gradient_operand], 0, bytes);
    };
    if (pass.kernel == nullptr) return clear();

    sweep::Stream streams[rules::max_states];
    if (random_from_ != nullptr) {
        const std::uint64_t first = index_of(at, pass);
        for (int k = 0; k < rules::max_states; ++k) streams[k] = {pass.streams[k], first};
    }
    pass.kernel(at, count, pass.coefficients, streams);
    if (pass.clear_gradients) clear();
    for (std::size_t k = rules::first_state_operand; rides_along_ && k < operands_; ++k) {
        std::byte* const parameter = at[rules::parameter_operand];
        if (known_[k].role == Role::average && pass.average != nullptr) {
            std::byte* const averaged[] = {at[k], parameter};
            pass.average(averaged, count, pass.average_coefficients, nullptr);
        }
        if (known_[k].role == Role::copy) {
            pass.level.format(known_[k].number).store(parameter, at[k], count);
        }
    }
}

void Layout::sweep_box(std::size_t tile, std::byte* const* data, const Pass& pass,
                       Scratch& scratch) const noexcept {
    // Where this tile's box begins in each operand, and how far it reaches.
    std::byte* begin[max_arrays];
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
        auto dense = static_cast<std::ptrdiff_t>(known_[operand].item_size);
        for (std::size_t i = axes_.size(); i-- > 0;) {
            if (box[i] == 1) continue;
            const std::ptrdiff_t stride = axes_[i].strides[operand];
            copied.at[copied.count++] =
                back ? CopyAxis{box[i], dense, stride} : CopyAxis{box[i], stride, dense};
            dense *= static_cast<std::ptrdiff_t>(box[i]);
        }
        return copied;
    };

    std::byte* dense[max_arrays];
    std::byte* free = scratch.data();
    for (std::size_t k = 0; k < operands_; ++k) {
        const OperandInfo& known = known_[k];
        dense[k] = begin[k];
        if (known.access != Access::copied) continue;
        dense[k] = free;
        free += round_up(count * known.item_size, cache_line);
        if (known.role == Role::copy || pass.kernel == nullptr) continue;  // not read
        copy_box(copy_axes(k, false), known.item_size, begin[k], dense[k]);
    }

    if (by_rows_) {
        sweep_rows(box, begin, dense, pass);
    } else {
        std::byte* run[max_arrays];
        std::copy_n(dense, operands_, run);
        sweep_dense(run, count, pass);
    }

    for (std::size_t k = 0; k < operands_; ++k) {
        const OperandInfo& known = known_[k];
        const bool written =
            known.role == Role::gradient ? pass.clear_gradients : pass.kernel != nullptr;
        if (!written || known.access != Access::copied) continue;
        copy_box(copy_axes(k, true), known.item_size, dense[k], begin[k]);
    }
}

void Layout::sweep_rows(const std::size_t* box, std::byte* const* begin, std::byte* const* dense,
                        const Pass& pass) const noexcept {
    const std::size_t inner = axes_.size() - 1;
    std::size_t index[max_axes] = {};
    std::byte* at[max_arrays];
    for (std::size_t k = 0; k < operands_; ++k) {
        at[k] = known_[k].access == Access::rows ? begin[k] : dense[k];
    }
    for (;;) {
        std::byte* row[max_arrays];
        std::copy_n(at, operands_, row);
        sweep_dense(row, box[inner], pass);

        std::size_t axis = inner;  // the axis along which the next row lies
        while (axis > 0 && ++index[axis - 1] == box[axis - 1]) index[--axis] = 0;
        if (axis == 0) return;
        for (std::size_t k = 0; k < operands_; ++k) {
            if (known_[k].access != Access::rows) {
                at[k] += box[inner] * known_[k].item_size;
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
