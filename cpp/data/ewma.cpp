#include "data/ewma.hpp"

#include <math.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "runtime/subnormals.hpp"

namespace schuss::data {
namespace {

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

template <typename T>
bool same_bits(T a, T b) {
    return std::memcmp(&a, &b, sizeof a) == 0;
}

/// One step of the average, with the formula of rules/average.hpp.
template <typename T>
struct Recurrence {
    T decay_factor, one_minus_beta, pull;
    explicit Recurrence(double beta)
        : decay_factor(static_cast<T>(1 - beta < 0.5 ? 1 : beta)),
          one_minus_beta(static_cast<T>(1 - beta)),
          pull(1 - beta < 0.5 ? one_minus_beta : 0) {}
    T operator()(T v, T x) const { return decay_factor * v + (one_minus_beta * x - pull * v); }
};

/// Weights are computed in blocks of this size, with one exponential for each block.
constexpr std::size_t weight_block = 1024;

/// The weight of t values: 1 - beta^t, accurate for a small 1-beta too.
double one_minus_power(double one_minus_beta, double t) {
    return one_minus_beta < 1 ? -::expm1(t * ::log1p(-one_minus_beta)) : t > 0 ? 1 : 0;
}

/// The weight of s + t values, from the weights of the t later and the s earlier ones.
double combined(double later, double earlier) {
    return later + (1 - later) * earlier;
}

/// The divisors of the bias correction, a block of t at a time. They are computed from 1-beta as T
/// rounds it, so that they are the sums of the weights that the average uses.
template <typename T>
class Weights {
  public:
    static constexpr std::size_t block = weight_block;

    Weights(T one_minus_beta, bool bias_correction)
        : one_minus_beta_(one_minus_beta), corrected_(bias_correction) {}

    /// Whether the divisors of t = first + 1 and of all later t are 1.
    bool are_one(std::size_t first) const {
        return !corrected_ || static_cast<T>(weight_of(
                                  one_minus_beta_, static_cast<std::int64_t>(first + 1))) == T{1};
    }

    /// The divisors of t = first + 1 ... first + count, at most a block.
    const T* from(std::size_t first, std::size_t count) {
        if (first != first_) {
            for (; computed_ < count; ++computed_) {
                later_[computed_] =
                    one_minus_power(one_minus_beta_, static_cast<double>(computed_ + 1));
            }
            const double earlier = one_minus_power(one_minus_beta_, static_cast<double>(first));
            for (std::size_t i = 0; i < count; ++i) {
                divisors_[i] = static_cast<T>(combined(later_[i], earlier));
            }
            first_ = first;
        }
        return divisors_;
    }

  private:
    double one_minus_beta_;
    bool corrected_;
    std::size_t first_ = std::numeric_limits<std::size_t>::max();
    std::size_t computed_ = 0;
    double later_[block];
    T divisors_[block];
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

/// Averages `steps` values of each of `count` lines, and calls output(address, step, average).
template <std::size_t count, typename T, class Output>
void run(Line<T>* lines, std::size_t steps, const engine::CopyAxis& time, Recurrence<T> next,
         Output output) {
    Line<T> line[count];
    std::copy_n(lines, count, line);
    std::ptrdiff_t from = 0, to = 0;
    for (std::size_t i = 0; i < steps; ++i, from += time.from, to += time.to) {
        for (std::size_t k = 0; k < count; ++k) {
            line[k].v = next(line[k].v, load<T>(line[k].from + from));
            output(line[k].to + to, i, line[k].v);
        }
    }
    for (Line<T>& each : line) each.advance(steps, time);
    std::copy_n(line, count, lines);
}

/// The same for any number of lines up to `lanes`.
template <typename T, class Output>
void run(Line<T>* lines, std::size_t count, std::size_t steps, const engine::CopyAxis& time,
         Recurrence<T> next, Output output) {
    if (count == lanes) return run<lanes>(lines, steps, time, next, output);
    for (std::size_t k = 0; k < count; ++k) run<1>(lines + k, steps, time, next, output);
}

template <typename T>
void write(std::byte* to, std::size_t, T v) {
    store(to, v);
}

/// Roughly how many steps back a value still affects the last bit.
template <typename T>
double memory_length(double beta) {
    constexpr double digits = std::numeric_limits<T>::digits + 12;
    return beta > 0 ? digits * ::log(2) / -::log(beta) : 1;
}

/// Splits a long series into several lines that advance together. Each line begins a little early
/// from zero: the average forgets the past, so it soon has the same bits as the whole series. Where
/// the end of a line differs from the start of the next, the next is recomputed until the bits
/// agree, so the result is exact for all values. `from` must not be written, since recomputing
/// reads it again.
template <typename T>
void run_split(Line<T>& whole, std::size_t steps, std::size_t early, const engine::CopyAxis& time,
               Recurrence<T> next) {
    // An odd number of cache lines, so that the lanes do not all map to the same cache sets.
    constexpr std::size_t elements = engine::cache_line / sizeof(T);
    const std::size_t part = (steps / lanes / elements - 1) / 2 * 2 * elements + elements;
    Line<T> line[lanes];
    for (std::size_t k = 0; k < lanes; ++k) {
        line[k] = whole;
        line[k].advance(k * part - (k > 0 ? early : 0), time);
        if (k > 0) line[k].v = 0;
    }
    run<lanes - 1>(line + 1, early, time, next, [](std::byte*, std::size_t, T) {});
    T start[lanes];
    for (std::size_t k = 1; k < lanes; ++k) start[k] = line[k].v;
    run<lanes>(line, part, time, next, write<T>);

    for (std::size_t k = 1; k < lanes; ++k) {
        if (same_bits(line[k - 1].v, start[k])) continue;
        Line<T> redone = whole;
        redone.advance(k * part, time);
        redone.v = line[k - 1].v;
        std::size_t i = 0;
        for (; i < part; ++i) {
            redone.v = next(redone.v, load<T>(redone.from));
            if (same_bits(redone.v, load<T>(redone.to))) break;
            store(redone.to, redone.v);
            redone.advance(1, time);
        }
        if (i == part) line[k].v = redone.v;
    }
    whole.v = line[lanes - 1].v;
    whole.advance(lanes * part, time);
    run<1>(&whole, steps - lanes * part, time, next, write<T>);
}

/// Averages lines whose elements are closer to each other along the time axis than across lines.
template <typename T>
void run_lines(Line<T>* lines, std::size_t count, const engine::CopyAxis& time, double beta,
               Weights<T>& weights, Recurrence<T> next) {
    std::size_t done = 0;
    for (; done < time.size && !weights.are_one(done); done += weights.block) {
        const std::size_t steps = std::min(weights.block, time.size - done);
        const T* const divisors = weights.from(done, steps);
        run(lines, count, steps, time, next,
            [divisors](std::byte* to, std::size_t i, T v) { store(to, v / divisors[i]); });
    }
    if (done >= time.size) return;
    const std::size_t rest = time.size - done;
    const double early = memory_length<T>(beta);
    const bool in_place = lines[0].from == lines[0].to;
    const bool is_long = static_cast<double>(rest) >= 2 * lanes * (early + engine::cache_line);
    if (count < lanes && is_long && !in_place) {
        for (std::size_t k = 0; k < count; ++k) {
            run_split(lines[k], rest, static_cast<std::size_t>(early), time, next);
        }
    } else {
        run(lines, count, rest, time, next, write<T>);
    }
}

/// Averages adjacent series, whose elements of one time are closest to each other. Those that fit
/// into the cache advance together.
template <typename T>
struct Columns {
    static constexpr std::size_t max_count = 1024;
    T v[max_count];

    template <class Divide>
    void row(std::size_t count, const engine::CopyAxis& across, const std::byte* from,
             std::byte* to, Recurrence<T> next, Divide divide) {
        if (across.from == sizeof(T) && across.to == sizeof(T)) {
            for (std::size_t k = 0; k < count; ++k) {
                v[k] = next(v[k], load<T>(from + k * sizeof(T)));
                store(to + k * sizeof(T), divide(v[k]));
            }
            return;
        }
        for (std::size_t k = 0; k < count; ++k, from += across.from, to += across.to) {
            v[k] = next(v[k], load<T>(from));
            store(to, divide(v[k]));
        }
    }

    void run(std::size_t count, const engine::CopyAxis& across, const engine::CopyAxis& time,
             const std::byte* from, std::byte* to, Weights<T>& weights, Recurrence<T> next) {
        std::fill_n(v, count, T{0});
        bool corrected = true;
        for (std::size_t t = 0; t < time.size; ++t, from += time.from, to += time.to) {
            const std::size_t index = t % weights.block;
            if (index == 0 && corrected) corrected = !weights.are_one(t);
            if (corrected) {
                const std::size_t first = t - index;
                const T divisor =
                    weights.from(first, std::min(weights.block, time.size - first))[index];
                row(count, across, from, to, next, [divisor](T x) { return x / divisor; });
            } else {
                row(count, across, from, to, next, [](T x) { return x; });
            }
        }
    }
};

template <typename T>
void average(std::vector<engine::CopyAxis> axes, const std::byte* from, std::byte* to, double beta,
             bool bias_correction) {
    const engine::CopyAxis time = axes.back();
    axes.pop_back();
    axes = engine::coalesced(axes);
    // In the order of memory: series are closest to each other along the last axis.
    engine::sort_by_stride(axes, &engine::CopyAxis::from);
    // Computed before the mode is set, which would flush some coefficients to zero.
    const Recurrence<T> next(beta);
    Weights<T> weights(next.one_minus_beta, bias_correction);
    const runtime::SubnormalsAreZero mode;

    if (!axes.empty() && engine::magnitude(axes.back().from) < engine::magnitude(time.from)) {
        const engine::CopyAxis across = axes.back();
        axes.pop_back();
        Columns<T> columns;
        engine::for_each(axes, from, to, [&](const std::byte* source, std::byte* target) {
            for (std::size_t k = 0; k < across.size; k += columns.max_count) {
                const auto first = static_cast<std::ptrdiff_t>(k);
                columns.run(std::min(columns.max_count, across.size - k), across, time,
                            source + first * across.from, target + first * across.to, weights,
                            next);
            }
        });
        return;
    }
    Line<T> lines[lanes];
    std::size_t count = 0;
    engine::for_each(axes, from, to, [&](const std::byte* source, std::byte* target) {
        lines[count++] = {source, target};
        if (count < lanes) return;
        run_lines(lines, count, time, beta, weights, next);
        count = 0;
    });
    if (count > 0) run_lines(lines, count, time, beta, weights, next);
}

}  // namespace

double weight_of(double one_minus_beta, std::int64_t t) {
    const std::int64_t first =
        (t - 1) / static_cast<std::int64_t>(weight_block) * static_cast<std::int64_t>(weight_block);
    return combined(one_minus_power(one_minus_beta, static_cast<double>(t - first)),
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
