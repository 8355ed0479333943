#include "engine/gradient_stats.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "engine/copy.hpp"
#include "runtime/subnormals.hpp"
#include "runtime/thread_pool.hpp"

namespace schuss::engine {
namespace {

/// Blocks that a thread takes at a time, at least and at most. Of a gradient that lies across its
/// parameter, all of it is brought into order at once: so many rows that cache lines are read
/// whole.
constexpr std::size_t least_share = 16, most_share = 256;
constexpr std::size_t rows_a_share = 16;

/// Sums of squares from here on have lost nothing to squares that underflow, however many these
/// are. Below, elements are less than 2^-450; where a sum overflows, one is more than 2^480. Times
/// such a power of two, the squares of all that counts are well within the range, and so is their
/// sum.
constexpr double safe_sum = 0x1p-900;
constexpr int safe_power = 600;

}  // namespace

MemoryOrder::MemoryOrder(const std::vector<std::size_t>& shape,
                         const std::ptrdiff_t* parameter_strides, const std::ptrdiff_t* strides,
                         std::size_t item_size, bool aligned)
    : item_size_(item_size), elements_(1) {
    std::vector<std::size_t> order(shape.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [=](std::size_t a, std::size_t b) {
        return magnitude(parameter_strides[a]) > magnitude(parameter_strides[b]);
    });
    for (const std::size_t i : order) {
        elements_ *= shape[i];
        if (shape[i] <= 1) continue;
        const bool backwards = parameter_strides[i] < 0;
        const std::ptrdiff_t stride = backwards ? -strides[i] : strides[i];
        if (backwards) offset_ += static_cast<std::ptrdiff_t>(shape[i] - 1) * strides[i];
        const bool runs_on =
            !axes_.empty() && axes_.back().stride == stride * static_cast<std::ptrdiff_t>(shape[i]);
        if (runs_on) {
            axes_.back() = {axes_.back().size * shape[i], stride};
        } else {
            axes_.push_back({shape[i], stride});
        }
    }
    if (axes_.empty()) axes_.push_back({1, static_cast<std::ptrdiff_t>(item_size)});
    contiguous_ =
        aligned && axes_.size() == 1 && axes_[0].stride == static_cast<std::ptrdiff_t>(item_size);
}

void MemoryOrder::gather(const std::byte* gradient, std::size_t begin, std::size_t count,
                         std::byte* to) const noexcept {
    const auto item_size = static_cast<std::ptrdiff_t>(item_size_);
    const Axis& row = axes_.back();
    while (count > 0) {
        const std::size_t column = begin % row.size;
        const std::byte* from =
            gradient + offset_ + static_cast<std::ptrdiff_t>(column) * row.stride;
        std::size_t outer = begin / row.size;
        std::size_t rows = 1;  // that follow each other
        CopyAxes axes;
        for (std::size_t i = axes_.size() - 1; i-- > 0;) {
            const std::size_t at = outer % axes_[i].size;
            from += static_cast<std::ptrdiff_t>(at) * axes_[i].stride;
            outer /= axes_[i].size;
            if (i + 2 != axes_.size() || column > 0 || count < row.size) continue;
            rows = std::min(count / row.size, axes_[i].size - at);
            axes.at[axes.count++] = {rows, axes_[i].stride,
                                     static_cast<std::ptrdiff_t>(row.size) * item_size};
        }
        const std::size_t run = std::min(count, row.size - column);
        axes.at[axes.count++] = {run, row.stride, item_size};
        copy_box(axes, item_size_, from, to);
        to += rows * run * item_size_;
        begin += rows * run;
        count -= rows * run;
    }
}

void GradientStats::prepare(std::vector<Gradient> gradients, std::size_t threads) {
    gradients_ = std::move(gradients);
    segments_.clear();
    blocks_.clear();
    std::size_t left = 0;  // elements that the last block has room for
    for (std::size_t i = 0; i < gradients_.size(); ++i) {
        const std::size_t elements = gradients_[i].walk->elements();
        for (std::size_t at = 0; at < elements;) {
            if (left == 0) {
                blocks_.push_back(segments_.size());
                left = sweep::stats_block;
            }
            const std::size_t count = std::min(left, elements - at);
            segments_.push_back({i, at, count, true});
            at += count;
            left -= count;
        }
    }
    sums_.resize(blocks_.size());
    blocks_.push_back(segments_.size());
    threads_ = threads;
    if (scratch_.size() < threads_) scratch_.resize(threads_);
    blocks_a_share_ = least_share;
    std::size_t widest = 0;  // element of those that are buffered
    for (const Gradient& gradient : gradients_) {
        if (gradient.walk->contiguous()) continue;
        widest = std::max(widest, numbers::size_of(gradient.number));
        const std::size_t blocks = rows_a_share * gradient.walk->row() / sweep::stats_block;
        blocks_a_share_ = std::clamp(blocks, blocks_a_share_, most_share);
    }
    const std::size_t bytes = widest * blocks_a_share_ * sweep::stats_block;
    for (Scratch& scratch : scratch_) scratch.reserve(bytes);
}

void GradientStats::run_share(const sweep::Level& level, std::size_t share,
                              std::byte* scratch) noexcept {
    const std::size_t first = share * blocks_a_share_;
    const std::size_t last = std::min(first + blocks_a_share_, sums_.size());
    std::size_t buffered = gradients_.size();  // whose elements are in the scratch, from where on
    std::size_t gathered_from = 0;
    for (std::size_t block = first; block < last; ++block) {
        double lanes[sweep::stats_lanes] = {};
        std::size_t done = 0;
        for (std::size_t i = blocks_[block]; i < blocks_[block + 1]; ++i) {
            auto& [number, begin, count, finite] = segments_[i];
            const auto& [format, walk, data] = gradients_[number];
            const std::byte* values = data;
            if (walk->contiguous()) {
                values = walk->at(data, begin);
            } else {
                if (buffered != number) {
                    const std::size_t room = (last - block) * sweep::stats_block - done;
                    walk->gather(data, begin, std::min(room, walk->elements() - begin), scratch);
                    buffered = number;
                    gathered_from = begin;
                }
                values = scratch + (begin - gathered_from) * numbers::size_of(format);
            }
            const std::size_t lane = done % sweep::stats_lanes;
            const sweep::Format& loops = level.format(format);
            const sweep::SumSquares sum_squares =
                power_ == 0 ? loops.sum_squares : loops.sum_squares_scaled;
            finite = sum_squares(values, count, lane, lanes, std::ldexp(1.0, power_));
            done += count;
        }
        for (std::size_t half = sweep::stats_lanes / 2; half > 0; half /= 2) {
            for (std::size_t k = 0; k < half; ++k) lanes[k] = lanes[k] + lanes[k + half];
        }
        sums_[block] = lanes[0];
    }
}

void GradientStats::run(const sweep::Level& level, bool wake_workers) noexcept {
    add_up(level, wake_workers, 0);
    const bool is_safe = sum_ >= safe_sum && sum_ <= std::numeric_limits<double>::max();
    if (is_safe || first_nonfinite_ < gradients_.size()) return;
    // The squares of other formats do not leave the range of double.
    const bool may_leave = std::any_of(
        gradients_.begin(), gradients_.end(),
        [](const Gradient& gradient) { return gradient.number == numbers::DType::float64; });
    if (may_leave) add_up(level, wake_workers, sum_ < 1 ? safe_power : -safe_power);
}

numbers::Wide GradientStats::norm() const {
    return numbers::Wide(std::sqrt(sum_), -power_);
}

void GradientStats::add_up(const sweep::Level& level, bool wake_workers, int power) noexcept {
    power_ = power;
    struct Job {
        GradientStats& survey;
        const sweep::Level& level;
    } job{*this, level};
    const auto run_one = [](void* context, std::size_t number, std::size_t place) noexcept {
        auto& [all, table] = *static_cast<Job*>(context);
        const runtime::SubnormalsAreZero mode;
        all.run_share(table, number, all.scratch_[place].data());
    };
    const std::size_t shares = (sums_.size() + blocks_a_share_ - 1) / blocks_a_share_;
    runtime::parallel_for({run_one, &job, shares, wake_workers}, threads_);

    first_nonfinite_ = gradients_.size();
    for (std::size_t i = segments_.size(); i-- > 0;) {
        if (!segments_[i].finite) first_nonfinite_ = segments_[i].gradient;
    }
    std::size_t left = sums_.size();
    while (left > 1) {
        for (std::size_t i = 0; i + 1 < left; i += 2) sums_[i / 2] = sums_[i] + sums_[i + 1];
        if (left % 2 == 1) sums_[left / 2] = sums_[left - 1];
        left = (left + 1) / 2;
    }
    sum_ = sums_.empty() ? 0 : sums_[0];
}

}  // namespace schuss::engine
