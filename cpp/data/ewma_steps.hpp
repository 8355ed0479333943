// Steps of averages: of several separate series at a time, and of a band of adjacent ones.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "engine/copy.hpp"

namespace schuss::data {

template <typename T>
T load(const std::byte* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

template <typename T>
void store(std::byte* at, T value) {
    std::memcpy(at, &value, sizeof value);
}

/// One step of the average, with the formula of rules/average.hpp.
template <typename T>
struct Recurrence {
    T decay_factor, one_minus_beta, pull;
    explicit Recurrence(double beta)
        : decay_factor(static_cast<T>(1 - beta < 0.5 ? 1 : beta)),
          one_minus_beta(static_cast<T>(1 - beta)),
          pull(1 - beta < 0.5 ? one_minus_beta : 0) {}
    template <typename Values>  // numbers, or vectors of them
    Values operator()(Values v, Values x) const {
        return decay_factor * v + (one_minus_beta * x - pull * v);
    }
};

/// One series: the next value, where its average goes, and the average so far.
template <typename T>
struct Line {
    const std::byte* from;
    std::byte* to;
    T v = 0;

    void advance(std::size_t steps, const engine::CopyAxis& time) {
        from += static_cast<std::ptrdiff_t>(steps) * time.from;
        to += static_cast<std::ptrdiff_t>(steps) * time.to;
    }
};

/// Each average is a chain of dependent products and sums, so several series advance together.
/// Measured: fewer lanes take longer.
constexpr std::size_t lanes = 8;

/// Averages `steps` values of a line, and calls output(address, step, average).
template <typename T, class Output>
void run_line(Line<T>& line, std::size_t steps, const engine::CopyAxis& time, Recurrence<T> next,
              Output output) {
    T v = line.v;
    const std::byte* from = line.from;
    std::byte* to = line.to;
    for (std::size_t i = 0; i < steps; ++i, from += time.from, to += time.to) {
        v = next(v, load<T>(from));
        output(to, i, v);
    }
    line = {from, to, v};
}

/// The same for `lanes` lines, which advance together.
template <typename T, class Output>
void run_lines(Line<T>* line, std::size_t steps, const engine::CopyAxis& time, Recurrence<T> next,
               Output output) {
    typedef T Vector __attribute__((vector_size(16)));
    constexpr std::size_t width = sizeof(Vector) / sizeof(T);
    T averages[lanes];
    Vector v[lanes / width];
    const std::byte* from[lanes];
    std::byte* to[lanes];
    for (std::size_t k = 0; k < lanes; ++k) {
        from[k] = line[k].from;
        to[k] = line[k].to;
        averages[k] = line[k].v;
    }
    std::memcpy(v, averages, sizeof v);
    std::ptrdiff_t source = 0, target = 0;
    for (std::size_t i = 0; i < steps; ++i, source += time.from, target += time.to) {
        for (std::size_t k = 0; k < lanes; k += width) {
            Vector x, &average = v[k / width];
            for (std::size_t j = 0; j < width; ++j) x[j] = load<T>(from[k + j] + source);
            average = next(average, x);
            for (std::size_t j = 0; j < width; ++j) output(to[k + j] + target, i, T{average[j]});
        }
    }
    std::memcpy(averages, v, sizeof v);
    for (std::size_t k = 0; k < lanes; ++k) {
        line[k] = {from[k] + source, to[k] + target, averages[k]};
    }
}

/// Averages `steps` values of `lanes` lines in their place, and saves the values: a row of the
/// lines for each step.
template <typename T>
void run_saving(Line<T>* line, std::size_t steps, const engine::CopyAxis& time, Recurrence<T> next,
                T* saved) {
    typedef T Vector __attribute__((vector_size(16)));
    constexpr std::size_t width = sizeof(Vector) / sizeof(T);
    std::byte* at[lanes];
    T averages[lanes];
    for (std::size_t k = 0; k < lanes; ++k) {
        at[k] = line[k].to;
        averages[k] = line[k].v;
    }
    Vector v[lanes / width];
    std::memcpy(v, averages, sizeof v);
    std::ptrdiff_t offset = 0;
    for (std::size_t i = 0; i < steps; ++i, offset += time.to, saved += lanes) {
        for (std::size_t k = 0; k < lanes; k += width) {
            Vector x, &average = v[k / width];
            for (std::size_t j = 0; j < width; ++j) x[j] = load<T>(at[k + j] + offset);
            std::memcpy(saved + k, &x, sizeof x);
            average = next(average, x);
            for (std::size_t j = 0; j < width; ++j) store<T>(at[k + j] + offset, average[j]);
        }
    }
    std::memcpy(averages, v, sizeof v);
    for (std::size_t k = 0; k < lanes; ++k) line[k].v = averages[k];
}

/// Writes each average. Not a function, which would be called by its address.
struct Write {
    template <typename T>
    void operator()(std::byte* to, std::size_t, T v) const {
        store(to, v);
    }
};

/// Adjacent series, which advance together.
struct Band {
    const std::byte* from;
    std::byte* to;
    engine::CopyAxis across;

    void advance(std::size_t steps, const engine::CopyAxis& time) {
        from += static_cast<std::ptrdiff_t>(steps) * time.from;
        to += static_cast<std::ptrdiff_t>(steps) * time.to;
    }
};

/// The maximum width of a band: its averages stay in the cache.
constexpr std::size_t max_width = 1024;

/// Averages `steps` rows of a band. output(step) returns what is called for each average of the
/// row, with its address, its series and the average.
template <typename T, class Output>
void run_rows(Band& band, std::size_t steps, const engine::CopyAxis& time, T* averages,
              Recurrence<T> next, Output output) {
    const auto [count, from_stride, to_stride] = band.across;
    T v[max_width];  // of its own, so that the compiler knows that no output is in its memory
    std::copy_n(averages, count, v);
    for (std::size_t i = 0; i < steps; ++i, band.advance(1, time)) {
        const std::byte* from = band.from;
        std::byte* to = band.to;
        const auto write = output(i);
        if (from_stride == sizeof(T) && to_stride == sizeof(T)) {
            for (std::size_t k = 0; k < count; ++k) {
                v[k] = next(v[k], load<T>(from + k * sizeof(T)));
                write(to + k * sizeof(T), k, v[k]);
            }
            continue;
        }
        for (std::size_t k = 0; k < count; ++k, from += from_stride, to += to_stride) {
            v[k] = next(v[k], load<T>(from));
            write(to, k, v[k]);
        }
    }
    std::copy_n(v, count, averages);
}

/// Averages `steps` rows of a band, and writes the averages.
template <typename T>
void run_rows(Band& band, std::size_t steps, const engine::CopyAxis& time, T* averages,
              Recurrence<T> next) {
    run_rows(band, steps, time, averages, next, [](std::size_t) { return Write(); });
}

}  // namespace schuss::data
