#include "engine/gradient_stats.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "runtime/subnormals.hpp"
#include "runtime/thread_pool.hpp"

namespace schuss::engine {
namespace {

/// A pass has this many chunks, so that threads can divide it evenly, unless a chunk would have
/// fewer or more blocks than this.
constexpr std::size_t chunks_per_pass = 32, min_blocks = 4, max_blocks = 64;

/// The elements of a gradient whose order differs from its parameter's are copied for a whole chunk
/// at once: enough rows that cache lines are read whole.
constexpr std::size_t rows_per_chunk = 16, max_copied_blocks = 256;

/// Gradients of more bytes are read block by block. Measured: pairs of blocks take 0.7 to 0.9 of
/// the time where the gradients are in the cache after a step, and 1.1 to 1.2 where they are not.
constexpr std::size_t largest_in_pairs = std::size_t{1} << 22;

/// From this sum of squares on, squares that underflow are too small to change the sum. Below it,
/// every element is less than 2^-450. If the sum overflows, some element is more than 2^480. In
/// both cases, elements scaled by 2^safe_power or 2^-safe_power have squares, and a sum of squares,
/// well within the range of double.
constexpr double safe_sum = 0x1p-900;
constexpr int safe_power = 600;

}  // namespace

void GradientStats::lay_out(std::vector<Gradient> gradients) {
    gradients_ = std::move(gradients);
    segments_.clear();
    blocks_.clear();
    indices_.clear();
    std::size_t bytes = 0;
    std::size_t at = 0;  // the index of an element among all
    scratch_bytes_ = 0;
    for (std::size_t i = 0; i < gradients_.size(); ++i) {
        const Gradient& gradient = gradients_[i];
        const std::size_t size = numbers::size_of(gradient.dtype);
        if (gradient.rows == nullptr) {
            add_segments(i, 0, gradient.order->elements(), at);
            bytes += gradient.order->elements() * size;
            at += gradient.order->elements();
            continue;
        }
        const std::size_t row = gradient.rows->row;
        for (std::size_t k = 0; k < gradient.rows->count(); ++k) {
            add_segments(i, k * row, row, at + gradient.rows->index(k) * row);
        }
        at += gradient.elements;
        scratch_bytes_ = std::max(scratch_bytes_, std::min(row, sweep::stats_block) * size);
    }
    sums_.resize(blocks_.size());
    merged_.resize(blocks_.size());
    blocks_.push_back(segments_.size());
    in_pairs_ = bytes <= largest_in_pairs;
    blocks_per_chunk_ = std::clamp(sums_.size() / chunks_per_pass, min_blocks, max_blocks);
    std::size_t largest_item = 0;  // of the gradients that are copied
    for (const Gradient& gradient : gradients_) {
        if (gradient.rows != nullptr || gradient.order->contiguous() ||
            gradient.order->elements() == 0) {
            continue;
        }
        largest_item = std::max(largest_item, numbers::size_of(gradient.dtype));
        const std::size_t blocks = rows_per_chunk * gradient.order->row() / sweep::stats_block;
        blocks_per_chunk_ = std::clamp(blocks, blocks_per_chunk_, max_copied_blocks);
    }
    // The other component of the first number and of the last one may be outside the chunk.
    scratch_bytes_ =
        std::max(scratch_bytes_, largest_item * (blocks_per_chunk_ * sweep::stats_block + 2));
}

/// Adds the parts of some elements of a gradient. at: the index of the first among all elements.
void GradientStats::add_segments(std::size_t gradient, std::size_t begin, std::size_t count,
                                 std::size_t at) {
    while (count > 0) {
        const std::size_t block = at / sweep::stats_block;
        if (indices_.empty() || indices_.back() != block) {
            indices_.push_back(block);
            blocks_.push_back(segments_.size());
        }
        const std::size_t part = std::min(count, (block + 1) * sweep::stats_block - at);
        const auto place = static_cast<std::uint16_t>(at % sweep::stats_block);
        segments_.push_back({gradient, begin, part, place, true});
        begin += part;
        at += part;
        count -= part;
    }
}

void GradientStats::prepare(std::size_t threads) {
    threads_ = threads;
    if (scratch_.size() < threads_) scratch_.resize(threads_);
    for (Scratch& scratch : scratch_) scratch.reserve(scratch_bytes_);
}

/// Sums blocks from `first` on that lie in one contiguous gradient, and returns their number.
std::size_t GradientStats::run_whole_blocks(const sweep::Level& level, std::size_t first,
                                            std::size_t last) noexcept {
    const Segment& segment = segments_[blocks_[first]];
    const auto& [dtype, order, data, rows, elements] = gradients_[segment.gradient];
    if (rows != nullptr) return 0;
    // Untouched rows, which have no segments, may come before the first segment of a block.
    const bool is_whole = segment.count == sweep::stats_block;
    if (power_ != 0 || !order->contiguous() || !is_whole) return 0;
    const std::size_t left = order->elements() - segment.begin;
    const std::size_t blocks = std::min(last - first, left / sweep::stats_block);
    const sweep::Format& loops = level.format(dtype);
    const std::byte* values = order->at(data, segment.begin);
    loops.sum_blocks(values, blocks, in_pairs_, &sums_[first]);
    for (std::size_t block = first; block < first + blocks; ++block) {
        bool is_finite = std::isfinite(sums_[block]);
        if (!is_finite) {  // of float64, squares can overflow where the elements are finite
            double lanes[sweep::stats_lanes] = {};
            is_finite = loops.sum_squares(values, sweep::stats_block, 0, lanes, 1);
        }
        segments_[blocks_[block]].is_finite = is_finite;
        values += sweep::stats_block * loops.size;
    }
    return blocks;
}

void GradientStats::run_chunk(const sweep::Level& level, std::size_t chunk,
                              std::byte* scratch) noexcept {
    const std::size_t first = chunk * blocks_per_chunk_;
    const std::size_t last = std::min(first + blocks_per_chunk_, sums_.size());
    const double scale = std::ldexp(1.0, power_);
    std::size_t buffered = gradients_.size();  // the gradient in the scratch, and its first element
    std::size_t buffered_from = 0;
    for (std::size_t block = first; block < last; ++block) {
        block += run_whole_blocks(level, block, last);
        if (block == last) return;
        double lanes[sweep::stats_lanes] = {};
        for (std::size_t i = blocks_[block]; i < blocks_[block + 1]; ++i) {
            auto& [index, begin, count, place, is_finite] = segments_[i];
            const auto& [dtype, order, data, rows, elements] = gradients_[index];
            const std::byte* values = data;
            if (rows != nullptr) {
                rows->sum(begin / rows->row, begin % rows->row, count, level, scratch);
                values = scratch;
                buffered = gradients_.size();
            } else if (order->contiguous()) {
                values = order->at(data, begin);
            } else {
                if (buffered != index) {
                    buffered = index;
                    buffered_from = begin - begin % order->components();
                    const std::size_t room = (last - block) * sweep::stats_block - place;
                    const std::size_t end = std::min(begin + room, order->elements());
                    order->gather(data, buffered_from, end - buffered_from, scratch);
                }
                values = scratch + (begin - buffered_from) * numbers::size_of(dtype);
            }
            const sweep::Format& loops = level.format(dtype);
            const auto sum_squares = power_ == 0 ? loops.sum_squares : loops.sum_squares_scaled;
            is_finite = sum_squares(values, count, place % sweep::stats_lanes, lanes, scale);
        }
        sums_[block] = sweep::sum_of_lanes(lanes);
    }
}

void GradientStats::run(const sweep::Level& level, bool wake_workers, bool backwards) noexcept {
    sum(level, 0, wake_workers, backwards);
    const bool is_safe = sum_ >= safe_sum && sum_ <= std::numeric_limits<double>::max();
    if (is_safe || first_nonfinite_ < gradients_.size()) return;
    // The squares of other formats are within the range of double.
    const bool has_float64 = std::any_of(
        gradients_.begin(), gradients_.end(),
        [](const Gradient& gradient) { return gradient.dtype == numbers::DType::float64; });
    const int power = sum_ < 1 ? safe_power : -safe_power;
    if (has_float64) sum(level, power, wake_workers, backwards);
}

numbers::Wide GradientStats::norm() const {
    return numbers::Wide(std::sqrt(sum_), -power_);
}

void GradientStats::sum_blocks(const sweep::Level& level, int power, bool wake_workers,
                               bool backwards) noexcept {
    power_ = power;
    const std::size_t chunks = (sums_.size() + blocks_per_chunk_ - 1) / blocks_per_chunk_;
    struct Job {
        GradientStats& stats;
        const sweep::Level& level;
    } job{*this, level};
    const auto run_task = [](void* context, std::size_t task, std::size_t slot) noexcept {
        auto& [stats, table] = *static_cast<Job*>(context);
        const runtime::SubnormalsAreZero mode;
        stats.run_chunk(table, task, stats.scratch_[slot].data());
    };
    runtime::parallel_for({run_task, &job, chunks, wake_workers, backwards}, threads_);

    first_nonfinite_ = gradients_.size();
    for (std::size_t i = segments_.size(); i-- > 0;) {
        if (!segments_[i].is_finite) first_nonfinite_ = segments_[i].gradient;
    }
}

void GradientStats::sum(const sweep::Level& level, int power, bool wake_workers,
                        bool backwards) noexcept {
    sum_blocks(level, power, wake_workers, backwards);
    sum_ = sum_in_pairs();
}

/// Sums the sums of the blocks in a fixed order, as pairs, pairs of pairs and so on. Overwrites
/// them. Those of blocks that are left out are 0, which changes no sum.
double GradientStats::sum_in_pairs() noexcept {
    std::copy(indices_.begin(), indices_.end(), merged_.begin());
    std::size_t left = sums_.size();
    while (left > 1) {
        std::size_t pairs = 0;
        for (std::size_t i = 0; i < left; ++i) {
            const std::size_t pair = merged_[i] / 2;
            if (pairs > 0 && merged_[pairs - 1] == pair) {
                sums_[pairs - 1] = sums_[pairs - 1] + sums_[i];
            } else {
                merged_[pairs] = pair;
                sums_[pairs++] = sums_[i];
            }
        }
        left = pairs;
    }
    return sums_.empty() ? 0 : sums_[0];
}

}  // namespace schuss::engine
