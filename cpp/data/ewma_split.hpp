// The averages of a long series, cut into pieces that are averaged at the same time.
#pragma once

#include <math.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "data/ewma_steps.hpp"
#include "data/sharing.hpp"
#include "engine/copy.hpp"
#include "runtime/subnormals.hpp"

namespace schuss::data {

/// Averages bands of one width, over a number of steps without bias correction.
///
/// Each piece begins a little early from zero: the average forgets the past, so it soon has the
/// same bits as that of the whole series. Where the end of a piece differs from the start of the
/// next, the next is recomputed until the bits agree, so the result is exact for all values.
///
/// Recomputing reads the values again. Where the averages replace them, a part of the series is
/// averaged at a time, whose values are saved.
template <typename T>
class Split {
  public:
    Split(const engine::CopyAxis& time, std::size_t steps, std::size_t width, double beta,
          Sharing sharing)
        : time_(time),
          steps_(steps),
          width_(width),
          lanes_(width == 1 ? lanes : 1),
          next_(beta),
          sharing_(sharing) {
        // Roughly how many steps back a value still affects the last bit.
        constexpr double digits = std::numeric_limits<T>::digits + 12;
        const double early = beta > 0 ? digits * ::log(2) / -::log(beta) : 1;
        early_ = static_cast<std::size_t>(std::min(early, 0x1p50));  // no series is as long
        shortest_ = 2 * (early_ + engine::cache_line);
    }

    /// Whether there are several pieces.
    bool pays() const { return tasks(steps_) * lanes_ > 1; }

    /// Allocates the memory for `run`.
    void prepare(bool in_place) {
        const std::size_t pieces = max_tasks() * lanes_;
        start_.resize(pieces * width_);
        end_.resize(pieces * width_);
        wave_ = steps_;
        if (!in_place) return;
        // What a thread saves fits into its second-level cache, and new memory takes time, too.
        constexpr std::size_t bytes = std::size_t{1} << 19;
        const std::size_t least =
            std::max(bytes / (width_ * sizeof(T)), 2 * shortest_ * lanes_) * sharing_.threads;
        const std::size_t waves = (steps_ + least - 1) / least;
        wave_ = (steps_ + waves - 1) / waves;
        saved_ = std::make_unique_for_overwrite<T[]>(wave_ * width_);
    }

    /// Averages the steps of a band, whose averages so far are v.
    void run(Band band, T* v) noexcept {
        for (std::size_t done = 0; done < steps_; done += wave_) {
            run_wave(band, std::min(wave_, steps_ - done), v);
        }
    }

  private:
    std::size_t max_tasks() const { return sharing_.threads > 1 ? 4 * sharing_.threads : 1; }

    /// The number of tasks for this number of steps, each of `lanes_` pieces; 0 if they are too
    /// few.
    std::size_t tasks(std::size_t steps) const {
        const std::size_t threads = sharing_.threads, count = steps / (lanes_ * 2 * shortest_);
        if (count < threads) return std::min(steps / (lanes_ * shortest_), threads);
        return std::min(count / threads * threads, max_tasks());
    }

    /// Averages some steps, and moves the band beyond them.
    void run_wave(Band& band, std::size_t steps, T* v) noexcept {
        const std::size_t count = tasks(steps), pieces = count * lanes_;
        if (pieces <= 1) return run_rest(band, steps, v);
        // An odd number of cache lines, so that the lanes do not all map to the same cache sets.
        constexpr std::size_t elements = engine::cache_line / sizeof(T);
        part_ = ((steps / pieces / elements - 1) / 2 * 2 + 1) * elements;
        std::copy_n(v, width_, start_.data());
        const auto run_pieces = [&](const auto& run) {
            run_tasks(count, sharing_, [&](std::size_t task, std::size_t) {
                const runtime::SubnormalsAreZero mode;
                run(task);
            });
        };
        // The early steps of all pieces come first: they read values that other pieces may replace.
        if (width_ == 1) {
            run_pieces([&](std::size_t task) { start_lanes(band, task); });
            run_pieces([&](std::size_t task) { run_lanes(band, task); });
        } else {
            run_pieces([&](std::size_t task) { start_piece(band, task); });
            run_pieces([&](std::size_t task) { run_piece(band, task); });
        }
        for (std::size_t piece = 1; piece < pieces; ++piece) join(band, piece);
        std::copy_n(&end_[(pieces - 1) * width_], width_, v);
        band.advance(pieces * part_, time_);
        run_rest(band, steps - pieces * part_, v);
    }

    void start_lanes(const Band& band, std::size_t task) noexcept {
        Line<T> line[lanes];
        for (std::size_t k = 0; k < lanes; ++k) {
            const std::size_t piece = std::max(task * lanes + k, std::size_t{1});
            line[k] = {band.from, band.to};
            line[k].advance(piece * part_ - early_, time_);
        }
        run_lines(line, early_, time_, next_, [](std::byte*, std::size_t, T) {});
        // The first piece begins where the steps before it ended.
        for (std::size_t k = task > 0 ? 0 : 1; k < lanes; ++k) {
            start_[task * lanes + k] = line[k].v;
        }
    }

    void run_lanes(const Band& band, std::size_t task) noexcept {
        const std::size_t first = task * lanes;
        Line<T> line[lanes];
        for (std::size_t k = 0; k < lanes; ++k) {
            line[k] = {band.from, band.to, start_[first + k]};
            line[k].advance((first + k) * part_, time_);
        }
        if (saved_ == nullptr) {
            run_lines(line, part_, time_, next_, Write());
        } else {
            run_saving(line, part_, time_, next_, saved_.get() + first * part_);
        }
        for (std::size_t k = 0; k < lanes; ++k) end_[first + k] = line[k].v;
    }

    void start_piece(Band band, std::size_t piece) noexcept {
        if (piece == 0) return;
        T* const v = &start_[piece * width_];
        std::fill_n(v, width_, T{0});
        band.advance(piece * part_ - early_, time_);
        const auto discard = [](std::byte*, std::size_t, T) {};
        run_rows(band, early_, time_, v, next_, [discard](std::size_t) { return discard; });
    }

    void run_piece(Band band, std::size_t piece) noexcept {
        T* const v = &end_[piece * width_];
        std::copy_n(&start_[piece * width_], width_, v);
        band.advance(piece * part_, time_);
        if (saved_ == nullptr) return run_rows(band, part_, time_, v, next_);
        T* const first = saved_.get() + piece * part_ * width_;
        run_rows(band, part_, time_, v, next_, [first, width = width_](std::size_t i) {
            return [saved = first + i * width](std::byte* to, std::size_t k, T average) {
                saved[k] = load<T>(to);
                store(to, average);
            };
        });
    }

    /// Averages a piece once more if it began from other averages than those at the end of the
    /// piece before, until the results are the same.
    void join(Band band, std::size_t piece) noexcept {
        const T* const before = &end_[(piece - 1) * width_];
        if (std::memcmp(before, &start_[piece * width_], width_ * sizeof(T)) == 0) return;
        T v[max_width];
        std::copy_n(before, width_, v);
        band.advance(piece * part_, time_);
        engine::CopyAxis time = time_;
        if (saved_ != nullptr) {
            // Of each step of a task, a row of all that it averages.
            const std::size_t first = piece / lanes_ * lanes_ * part_ + piece % lanes_;
            band.from = reinterpret_cast<const std::byte*>(saved_.get() + first * width_);
            band.across.from = sizeof(T);
            time.from = static_cast<std::ptrdiff_t>(lanes_ * width_ * sizeof(T));
        }
        for (std::size_t i = 0; i < part_; ++i, band.advance(1, time)) {
            bool same = true;
            for (std::size_t k = 0; k < width_; ++k) {
                const auto at = static_cast<std::ptrdiff_t>(k);
                std::byte* const to = band.to + at * band.across.to;
                v[k] = next_(v[k], load<T>(band.from + at * band.across.from));
                same = same && std::memcmp(&v[k], to, sizeof(T)) == 0;
                store(to, v[k]);
            }
            if (same) return;
        }
        std::copy_n(v, width_, &end_[piece * width_]);
    }

    void run_rest(Band& band, std::size_t steps, T* v) noexcept {
        if (width_ > 1) return run_rows(band, steps, time_, v, next_);
        Line<T> line{band.from, band.to, *v};
        run_line(line, steps, time_, next_, Write());
        *v = line.v;
        band.advance(steps, time_);
    }

    engine::CopyAxis time_;
    std::size_t steps_, width_, lanes_;
    Recurrence<T> next_;
    Sharing sharing_;
    std::size_t early_, shortest_;     // steps before a piece, and of the shortest piece that pays
    std::size_t wave_ = 0, part_ = 0;  // steps at a time, and of a piece
    std::vector<T> start_, end_;       // the averages at both ends of each piece
    std::unique_ptr<T[]> saved_;       // the values that averages replaced
};

}  // namespace schuss::data
