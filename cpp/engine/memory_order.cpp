#include "engine/memory_order.hpp"

#include <algorithm>

#include "engine/axes.hpp"
#include "engine/copy.hpp"

namespace schuss::engine {

MemoryOrder::MemoryOrder(const std::vector<std::size_t>& shape, const Operand& parameter,
                         const Operand& array)
    : item_size_(array.item_size()), components_(array.components), elements_(array.components) {
    const auto size = static_cast<std::ptrdiff_t>(item_size_);
    axes_.reserve(shape.size() + 1);
    for (std::size_t i = 0; i < shape.size(); ++i) {
        elements_ *= shape[i];
        if (shape[i] > 1) axes_.push_back({shape[i], {parameter.strides[i], array.strides[i]}});
    }
    std::ptrdiff_t offsets[2] = {};
    flip_negative(axes_, &OrderAxis::strides, offsets);
    offset_ = offsets[1];
    sort_by_stride(axes_, [](const OrderAxis& axis) { return axis.strides[0]; });
    merge_adjacent(axes_, [](const OrderAxis& axis) { return std::array{axis.stride()}; });
    if (axes_.empty()) axes_.push_back({1, {size, size}});
    const bool is_aligned = reinterpret_cast<std::size_t>(array.data) % array.alignment() == 0;
    contiguous_ = is_aligned && axes_.size() == 1 && axes_[0].stride() == size;
}

std::size_t MemoryOrder::whole_lines() const {
    std::size_t inner = 1, result = 1;  // the elements along the axes inside of the one at hand
    std::size_t fastest = 0;            // the smallest of their strides; 0 if all are 0
    for (std::size_t i = axes_.size(); i-- > 0;) {
        const std::size_t stride = magnitude(axes_[i].stride());
        if (stride != 0 && stride < fastest) {
            const std::size_t in_line = std::max(cache_line / stride, std::size_t{1});
            result = inner * std::min(axes_[i].size, in_line);
        }
        if (stride != 0 && (fastest == 0 || stride < fastest)) fastest = stride;
        inner *= axes_[i].size;
    }
    return result * components_;
}

/// Calls copy(address, dense, axes) for boxes of consecutive elements: how far a box begins from
/// the element at index zero, and from the first that is copied, in bytes; and its axes, with the
/// strides of the array and the dense ones.
template <class Copy>
void MemoryOrder::for_each_box(std::size_t begin, std::size_t count,
                               const Copy& copy) const noexcept {
    begin /= components_;
    count = (count + components_ - 1) / components_;
    std::size_t done = 0;
    while (done < count) {
        std::ptrdiff_t address = offset_;
        std::size_t index[max_axes];
        std::size_t rest = begin + done;
        for (std::size_t i = axes_.size(); i-- > 0;) {
            index[i] = rest % axes_[i].size;
            rest /= axes_[i].size;
            address += static_cast<std::ptrdiff_t>(index[i]) * axes_[i].stride();
        }
        // As many slices as possible along the outermost axis whose slices are copied whole.
        std::size_t slice = 1, outermost = axes_.size() - 1;
        while (outermost > 0 && index[outermost] == 0 &&
               count - done >= slice * axes_[outermost].size) {
            slice *= axes_[outermost--].size;
        }
        const std::size_t slices =
            std::min((count - done) / slice, axes_[outermost].size - index[outermost]);
        CopyAxes axes;
        auto dense = static_cast<std::ptrdiff_t>(item_size_ * slice);
        axes.at[axes.count++] = {slices, axes_[outermost].stride(), dense};
        for (std::size_t i = outermost + 1; i < axes_.size(); ++i) {
            dense /= static_cast<std::ptrdiff_t>(axes_[i].size);
            axes.at[axes.count++] = {axes_[i].size, axes_[i].stride(), dense};
        }
        copy(address, done * item_size_, axes);
        done += slices * slice;
    }
}

void MemoryOrder::gather(const std::byte* array, std::size_t begin, std::size_t count,
                         std::byte* to) const noexcept {
    for_each_box(begin, count, [&](std::ptrdiff_t address, std::size_t dense, CopyAxes& axes) {
        copy_box(axes, item_size_, array + address, to + dense);
    });
}

void MemoryOrder::scatter(const std::byte* from, std::size_t begin, std::size_t count,
                          std::byte* array) const noexcept {
    for_each_box(begin, count, [&](std::ptrdiff_t address, std::size_t dense, CopyAxes& axes) {
        for (std::size_t i = 0; i < axes.count; ++i) std::swap(axes.at[i].from, axes.at[i].to);
        copy_box(axes, item_size_, from + dense, array + address);
    });
}

}  // namespace schuss::engine
