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

/// One average after another, as rules/average.hpp has it: what all ways through an array have in
/// common.
template <typename T>
struct Recurrence {
    T keep, gain, loss;
    explicit Recurrence(double beta)
        : keep(static_cast<T>(1 - beta < 0.5 ? 1 : beta)),
          gain(static_cast<T>(1 - beta)),
          loss(1 - beta < 0.5 ? gain : 0) {}
    T operator()(T v, T x) const { return keep * v + (gain * x - loss * v); }
};

/// So many weights are made with one exponential.
constexpr std::size_t block_of_weights = 1024;

/// 1 - (1-gain)^t, exact for a small gain too.
double one_minus_power(double gain, double t) {
    return gain < 1 ? -::expm1(t * ::log1p(-gain)) : t > 0 ? 1 : 0;
}

/// That of s + t, of those of s and of t: the weight of later values, and the rest of it for
/// earlier ones.
double combined(double later, double earlier) {
    return later + (1 - later) * earlier;
}

/// The divisors of the bias inv_bias2, a block of t at a time: of the gain as T rounds it, so that
/// they are the weights that were used.
template <typename T>
class Weights {
  public:
    static constexpr std::size_t block = block_of_weights;

    Weights(T gain, bool bias_correction) : gain_(gain), corrected_(bias_correction) {}

    /// Whether the divisors of t = first + 1 and of all later t are 1.
    bool are_one(std::size_t first) const {
        return !corrected_ ||
               static_cast<T>(weight_of(gain_, static_cast<std::int64_t>(first + 1))) == T{1};
    }

    /// The divisors of t = first + 1 ... first + count, at most a block.
    const T* from(std::size_t first, std::size_t count) {
        if (first != first_) {
            for (; made_ < count; ++made_) {
                parts_[made_] = one_minus_power(gain_, static_cast<double>(made_ + 1));
            }
            const double earlier = one_minus_power(gain_, static_cast<double>(first));
            for (std::size_t i = 0; i < count; ++i) {
                at_[i] = static_cast<T>(combined(parts_[i], earlier));
            }
            first_ = first;
        }
        return at_;
    }

  private:
    double gain_;
    bool corrected_;
    std::size_t first_ = std::numeric_limits<std::size_t>::max();
    std::size_t made_ = 0;
    double parts_[block];
    T at_[block];
};

/// One series: where it comes from, where its averages go, and the average so far.
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

/// A single average waits for each product and each sum in turn, so a few run side by side.
/// Measured: fewer take longer.
constexpr std::size_t lanes = 8;

/// Averages `steps` values of each of `count` lines. output(address, step, v) takes what comes out.
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

/// As many lines as there are, up to `lanes`.
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

/// How far back values still matter to the last bit, roughly.
template <typename T>
double memory_of(double beta) {
    constexpr double digits = std::numeric_limits<T>::digits + 12;
    return beta > 0 ? digits * ::log(2) / -::log(beta) : 1;
}

/// A long series as several lines, each begun a little early from zero: as the past is forgotten,
/// it soon has the very bits of the whole. Where an end is not the next one's beginning, the next
/// is mended until it is, so that the result is exact whatever the values are. `from` must not be
/// written, as mending reads it again.
template <typename T>
void run_split(Line<T>& whole, std::size_t steps, std::size_t early, const engine::CopyAxis& time,
               Recurrence<T> next) {
    // An odd number of cache lines, so that the lanes do not all fall into the same cache sets.
    constexpr std::size_t elements = engine::cache_line / sizeof(T);
    const std::size_t part = (steps / lanes / elements - 1) / 2 * 2 * elements + elements;
    Line<T> line[lanes];
    for (std::size_t k = 0; k < lanes; ++k) {
        line[k] = whole;
        line[k].advance(k * part - (k > 0 ? early : 0), time);
        if (k > 0) line[k].v = 0;
    }
    run<lanes - 1>(line + 1, early, time, next, [](std::byte*, std::size_t, T) {});
    T begun[lanes];
    for (std::size_t k = 1; k < lanes; ++k) begun[k] = line[k].v;
    run<lanes>(line, part, time, next, write<T>);

    for (std::size_t k = 1; k < lanes; ++k) {
        if (same_bits(line[k - 1].v, begun[k])) continue;
        Line<T> mended = whole;
        mended.advance(k * part, time);
        mended.v = line[k - 1].v;
        std::size_t i = 0;
        for (; i < part; ++i) {
            mended.v = next(mended.v, load<T>(mended.from));
            if (same_bits(mended.v, load<T>(mended.to))) break;
            store(mended.to, mended.v);
            mended.advance(1, time);
        }
        if (i == part) line[k].v = mended.v;
    }
    whole.v = line[lanes - 1].v;
    whole.advance(lanes * part, time);
    run<1>(&whole, steps - lanes * part, time, next, write<T>);
}

/// Lines whose elements lie closer along the time than to each other.
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
    const double early = memory_of<T>(beta);
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

/// Series that lie side by side: `count` of them advance together, as many as fit the cache.
template <typename T>
struct Columns {
    static constexpr std::size_t most = 1024;
    T v[most];

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
            const std::size_t place = t % weights.block;
            if (place == 0 && corrected) corrected = !weights.are_one(t);
            if (corrected) {
                const std::size_t first = t - place;
                const T divisor =
                    weights.from(first, std::min(weights.block, time.size - first))[place];
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
    // Made before the mode is set, which would take some coefficients for zero.
    const Recurrence<T> next(beta);
    Weights<T> weights(next.gain, bias_correction);
    const runtime::SubnormalsAreZero mode;

    if (!axes.empty() && engine::magnitude(axes.back().from) < engine::magnitude(time.from)) {
        const engine::CopyAxis across = axes.back();
        axes.pop_back();
        Columns<T> columns;
        engine::for_each(axes, from, to, [&](const std::byte* source, std::byte* target) {
            for (std::size_t k = 0; k < across.size; k += columns.most) {
                const auto first = static_cast<std::ptrdiff_t>(k);
                columns.run(std::min(columns.most, across.size - k), across, time,
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

double weight_of(double gain, std::int64_t t) {
    const std::int64_t first = (t - 1) / static_cast<std::int64_t>(block_of_weights) *
                               static_cast<std::int64_t>(block_of_weights);
    return combined(one_minus_power(gain, static_cast<double>(t - first)),
                    one_minus_power(gain, static_cast<double>(first)));
}

void ewma(numbers::DType number, std::vector<engine::CopyAxis> axes, const std::byte* from,
          std::byte* to, double beta, bool bias_correction) {
    for (const engine::CopyAxis& axis : axes) {
        if (axis.size == 0) return;
    }
    if (number == numbers::DType::float32) {
        return average<float>(std::move(axes), from, to, beta, bias_correction);
    }
    average<double>(std::move(axes), from, to, beta, bias_correction);
}

}  // namespace schuss::data
