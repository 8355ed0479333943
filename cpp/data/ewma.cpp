#include "data/ewma.hpp"

#include <algorithm>
#include <utility>

#include "data/ewma_split.hpp"
#include "data/ewma_steps.hpp"
#include "data/ewma_weights.hpp"
#include "data/sharing.hpp"
#include "runtime/subnormals.hpp"

namespace schuss::data {
namespace {

/// Averages series that are apart along all axes but the last, time.
template <typename T>
class Averages {
  public:
    Averages(std::vector<engine::CopyAxis> axes, const std::byte* from, std::byte* to,
             Recurrence<T> next, double beta, bool bias_correction)
        : axes_(std::move(axes)), from_(from), to_(to), next_(next), beta_(beta) {
        std::size_t bytes = 2 * sizeof(T);
        for (const engine::CopyAxis& axis : axes_) bytes *= axis.size;
        sharing_ = sharing_of(bytes);
        time_ = axes_.back();
        axes_.pop_back();
        axes_ = engine::coalesced(axes_);
        // In the order of memory: series are closest to each other along the last axis.
        engine::sort_by_stride(axes_, &engine::CopyAxis::from);
        if (bias_correction) corrected_ = corrected_steps(next_.one_minus_beta, time_.size);
        if (corrected_ > 0) weights_.resize(sharing_.threads, Weights<T>(next_.one_minus_beta));
    }

    void run() {
        const bool adjacent =
            !axes_.empty() && engine::magnitude(axes_.back().from) < engine::magnitude(time_.from);
        adjacent ? run_bands() : run_lines();
    }

  private:
    /// Averages lines whose elements are closer to each other along the time axis than across
    /// lines.
    void run_lines() {
        const std::size_t count = series();
        Split<T> split(time_, time_.size - corrected_, 1, beta_, sharing_);
        const bool in_groups = !split.pays() || count / lanes >= sharing_.threads;
        const std::size_t grouped = !in_groups ? 0 : split.pays() ? count / lanes * lanes : count;
        if (grouped < count) split.prepare(from_ == to_);

        const std::size_t per_task = lanes * (1 + grouped / (16 * lanes * sharing_.threads));
        run_tasks((grouped + per_task - 1) / per_task, sharing_,
                  [&](std::size_t task, std::size_t slot) {
                      const runtime::SubnormalsAreZero mode;
                      const std::size_t end = std::min((task + 1) * per_task, grouped);
                      for (std::size_t i = task * per_task; i < end; i += lanes) {
                          run_group(i, std::min(lanes, end - i), slot);
                      }
                  });
        const runtime::SubnormalsAreZero mode;
        for (std::size_t i = grouped; i < count; ++i) {
            Line<T> line = line_at(i);
            run_corrected(&line, 1, 0);
            split.run({line.from, line.to, {1, sizeof(T), sizeof(T)}}, &line.v);
        }
    }

    void run_group(std::size_t first, std::size_t count, std::size_t slot) noexcept {
        Line<T> group[lanes];
        for (std::size_t k = 0; k < count; ++k) group[k] = line_at(first + k);
        run_corrected(group, count, slot);
        run_steps(group, count, time_.size - corrected_, Write());
    }

    void run_corrected(Line<T>* group, std::size_t count, std::size_t slot) noexcept {
        for (std::size_t done = 0; done < corrected_; done += weight_block) {
            const std::size_t steps = std::min(weight_block, corrected_ - done);
            const T* const divisors = weights_[slot].from(done, steps);
            run_steps(group, count, steps, [divisors](std::byte* to, std::size_t i, T v) {
                store(to, v / divisors[i]);
            });
        }
    }

    template <class Output>
    void run_steps(Line<T>* group, std::size_t count, std::size_t steps, Output output) noexcept {
        if (count == lanes) return data::run_lines(group, steps, time_, next_, output);
        for (std::size_t k = 0; k < count; ++k) run_line(group[k], steps, time_, next_, output);
    }

    /// Averages adjacent series, whose elements of one time are closest to each other.
    void run_bands() {
        const engine::CopyAxis across = axes_.back();
        axes_.pop_back();
        const std::size_t groups = series();
        Split<T> split(time_, time_.size - corrected_, across.size, beta_, sharing_);
        // A row that two threads write takes them longer than one, so bands are wide, and a single
        // one is split in time. In place, saving the values pays only if they are few.
        const std::size_t widest = from_ == to_ ? engine::cache_line / sizeof(T) / 2 : max_width;
        const bool in_turn = across.size <= widest && groups < sharing_.threads && split.pays();
        if (in_turn) split.prepare(from_ == to_);
        const std::size_t width = std::min(across.size, max_width);
        const std::size_t bands = (across.size + width - 1) / width;
        const auto band_at = [&](std::size_t i) {
            const Line<T> line = line_at(i / bands);
            Band band{line.from, line.to, across};
            const std::size_t first = i % bands * width;
            band.from += static_cast<std::ptrdiff_t>(first) * across.from;
            band.to += static_cast<std::ptrdiff_t>(first) * across.to;
            band.across.size = std::min(width, across.size - first);
            return band;
        };
        const auto run_band = [&](std::size_t i, std::size_t slot) {
            const runtime::SubnormalsAreZero mode;
            Band band = band_at(i);
            T v[max_width];
            std::fill_n(v, band.across.size, T{0});
            run_corrected_rows(band, v, slot);
            if (in_turn) return split.run(band, v);
            run_rows(band, time_.size - corrected_, time_, v, next_);
        };
        run_tasks(groups * bands, in_turn ? Sharing() : sharing_, run_band);
    }

    void run_corrected_rows(Band& band, T* v, std::size_t slot) noexcept {
        for (std::size_t done = 0; done < corrected_; done += weight_block) {
            const std::size_t steps = std::min(weight_block, corrected_ - done);
            const T* const divisors = weights_[slot].from(done, steps);
            data::run_rows(band, steps, time_, v, next_, [divisors](std::size_t i) {
                return [divisor = divisors[i]](std::byte* to, std::size_t, T average) {
                    store(to, average / divisor);
                };
            });
        }
    }

    std::size_t series() const {
        std::size_t count = 1;
        for (const engine::CopyAxis& axis : axes_) count *= axis.size;
        return count;
    }

    Line<T> line_at(std::size_t index) const {
        Line<T> line{from_, to_};
        engine::move_to(axes_, index, line.from, line.to);
        return line;
    }

    std::vector<engine::CopyAxis> axes_;
    engine::CopyAxis time_;
    const std::byte* from_;
    std::byte* to_;
    Recurrence<T> next_;
    double beta_;
    Sharing sharing_;
    std::size_t corrected_ = 0;        // first averages, divided by the sum of their weights
    std::vector<Weights<T>> weights_;  // for each thread
};

template <typename T>
void average(std::vector<engine::CopyAxis> axes, const std::byte* from, std::byte* to, double beta,
             bool bias_correction) {
    // Outside the mode of a step, which would flush some coefficients to zero.
    Averages<T>(std::move(axes), from, to, Recurrence<T>(beta), beta, bias_correction).run();
}

}  // namespace

double weight_of(double one_minus_beta, std::int64_t t) {
    const std::int64_t first =
        (t - 1) / static_cast<std::int64_t>(weight_block) * static_cast<std::int64_t>(weight_block);
    return combined_weight(one_minus_power(one_minus_beta, static_cast<double>(t - first)),
                           one_minus_power(one_minus_beta, static_cast<double>(first)));
}

void ewma(numbers::DType dtype, std::vector<engine::CopyAxis> axes, const std::byte* from,
          std::byte* to, double beta, bool bias_correction) {
    for (const engine::CopyAxis& axis : axes) {
        if (axis.size == 0) return;
    }
    if (dtype == numbers::DType::float32) {
        return average<float>(std::move(axes), from, to, beta, bias_correction);
    }
    average<double>(std::move(axes), from, to, beta, bias_correction);
}

}  // namespace schuss::data
