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

/// Sums the values in a fixed order, as pairs, pairs of pairs and so on. Overwrites them.
double sum_in_pairs(std::vector<double>& sums) noexcept {
    std::size_t left = sums.size();
    while (left > 1) {
        for (std::size_t i = 0; i + 1 < left; i += 2) sums[i / 2] = sums[i] + sums[i + 1];
        if (left % 2 == 1) sums[left / 2] = sums[left - 1];
        left = (left + 1) / 2;
    }
    return sums.empty() ? 0 : sums[0];
}

}  // namespace

void GradientStats::lay_out(std::vector<Gradient> gradients) {
    gradients_ = std::move(gradients);
    segments_.clear();
    blocks_.clear();
    std::size_t bytes = 0;
    std::size_t left = 0;  // elements that the last block has room for
    for (std::size_t i = 0; i < gradients_.size(); ++i) {
        const std::size_t elements = gradients_[i].order->elements();
        bytes += elements * numbers::size_of(gradients_[i].dtype);
        for (std::size_t begin = 0; begin < elements;) {
            if (left == 0) {
                blocks_.push_back(segments_.size());
                left = sweep::stats_block;
            }
            const std::size_t count = std::min(left, elements - begin);
            segments_.push_back({i, begin, count, true});
            begin += count;
            left -= count;
        }
    }
    sums_.resize(blocks_.size());
    blocks_.push_back(segments_.size());
    in_pairs_ = bytes <= largest_in_pairs;
    blocks_per_chunk_ = std::clamp(sums_.size() / chunks_per_pass, min_blocks, max_blocks);
    std::size_t largest_item = 0;  // of the gradients that are copied
    for (const Gradient& gradient : gradients_) {
        if (gradient.order->contiguous() || gradient.order->elements() == 0) continue;
        largest_item = std::max(largest_item, numbers::size_of(gradient.dtype));
        const std::size_t blocks = rows_per_chunk * gradient.order->row() / sweep::stats_block;
        blocks_per_chunk_ = std::clamp(blocks, blocks_per_chunk_, max_copied_blocks);
    }
    // The other component of the first number and of the last one may be outside the chunk.
    scratch_bytes_ = largest_item * (blocks_per_chunk_ * sweep::stats_block + 2);
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
    const auto& [dtype, order, data] = gradients_[segment.gradient];
    const std::size_t left = order->elements() - segment.begin;
    if (power_ != 0 || !order->contiguous() || left < sweep::stats_block) return 0;
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
        std::size_t done = 0;
        for (std::size_t i = blocks_[block]; i < blocks_[block + 1]; ++i) {
            auto& [index, begin, count, is_finite] = segments_[i];
            const auto& [dtype, order, data] = gradients_[index];
            const std::byte* values = data;
            if (order->contiguous()) {
                values = order->at(data, begin);
            } else {
                if (buffered != index) {
                    buffered = index;
                    buffered_from = begin - begin % order->components();
                    const std::size_t room = (last - block) * sweep::stats_block - done;
                    const std::size_t end = std::min(begin + room, order->elements());
                    order->gather(data, buffered_from, end - buffered_from, scratch);
                }
                values = scratch + (begin - buffered_from) * numbers::size_of(dtype);
            }
            const sweep::Format& loops = level.format(dtype);
            const auto sum_squares = power_ == 0 ? loops.sum_squares : loops.sum_squares_scaled;
            is_finite = sum_squares(values, count, done % sweep::stats_lanes, lanes, scale);
            done += count;
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
    sum_ = sum_in_pairs(sums_);
}

}  // namespace schuss::engine
