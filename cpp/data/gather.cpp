#include "data/gather.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

namespace schuss::data {
namespace {

/// An index, and where in the result its example goes.
struct Place {
    std::int64_t index;
    std::size_t position;
};

/// The places in the order of their indices: one pass for each eleven bits.
std::vector<Place> sorted(const std::int64_t* indices, std::size_t count) {
    constexpr int bits = 11;
    std::vector<Place> places(count), other(count);
    std::uint64_t all = 0;
    for (std::size_t i = 0; i < count; ++i) {
        places[i] = {indices[i], i};
        all |= static_cast<std::uint64_t>(indices[i]);
    }
    for (int shift = 0; shift < 64 && all >> shift != 0; shift += bits) {
        const auto digit = [shift](const Place& place) {
            return static_cast<std::size_t>(place.index >> shift) % (std::size_t{1} << bits);
        };
        std::array<std::size_t, 1 << bits> begin = {};
        for (const Place& place : places) ++begin[digit(place)];
        std::size_t sum = 0;
        for (std::size_t& entry : begin) sum += std::exchange(entry, sum);
        for (const Place& place : places) other[begin[digit(place)]++] = place;
        places.swap(other);
    }
    return places;
}

/// Simplifies the axes of an example and lays its copy out densely. Returns its size in bytes.
std::size_t lay_out(std::vector<engine::CopyAxis>& axes, std::size_t item_size) {
    axes = engine::coalesced(axes);
    std::size_t size = item_size;
    for (auto axis = axes.rbegin(); axis != axes.rend(); ++axis) {
        axis->to = static_cast<std::ptrdiff_t>(size);
        size *= axis->size;
    }
    return size;
}

/// Examples made of contiguous runs: one after the other, the next ones on their way meanwhile.
void gather_runs(const Examples& examples, std::size_t example_size, std::size_t run,
                 const std::int64_t* indices, std::size_t count, std::byte* to) {
    constexpr std::size_t ahead = 8;
    const std::size_t early = std::min<std::size_t>(run, 1024);
    for (std::size_t i = 0; i < count; ++i, to += example_size) {
        if (i + ahead < count) {
            const std::byte* const next = examples.first + indices[i + ahead] * examples.stride;
            for (std::size_t b = 0; b < early; b += engine::cache_line)
                __builtin_prefetch(next + b);
        }
        engine::for_each(examples.axes, examples.first + indices[i] * examples.stride, to,
                         [run](const std::byte* source, std::byte* target) {
                             std::memcpy(target, source, run);
                         });
    }
}

template <std::size_t size>
void copy_line(const std::byte* from, std::ptrdiff_t stride, std::size_t items, std::byte* to) {
    for (std::size_t i = 0; i < items; ++i) {
        std::memcpy(to, from, size);
        from += stride;
        to += size;
    }
}

/// Examples whose elements lie far apart, such as columns: in the order of memory, so that elements
/// of neighbouring examples, which share a cache line, are read together; a line of each at a time.
template <std::size_t size>
void gather_scattered(Examples examples, std::size_t example_size, const std::int64_t* indices,
                      std::size_t count, std::byte* to) {
    const engine::CopyAxis last = examples.axes.back();
    examples.axes.pop_back();
    const std::vector<Place> places = sorted(indices, count);
    constexpr std::size_t items = engine::cache_line / size, ahead = 16;
    engine::for_each(
        examples.axes, examples.first, to, [&](const std::byte* from, std::byte* target) {
            for (std::size_t first = 0; first < last.size; first += items) {
                const std::size_t many = std::min(items, last.size - first);
                const auto copy_lines = [&](std::size_t of) {
                    for (std::size_t i = 0; i < count; ++i) {
                        if (i + ahead < count) {
                            const Place& next = places[i + ahead];
                            const std::byte* source = from + next.index * examples.stride;
                            for (std::size_t k = 0; k < of; ++k, source += last.from) {
                                __builtin_prefetch(source);
                            }
                            __builtin_prefetch(target + next.position * example_size, 1);
                        }
                        const Place& place = places[i];
                        copy_line<size>(from + place.index * examples.stride, last.from, of,
                                        target + place.position * example_size);
                    }
                };
                many == items ? copy_lines(items) : copy_lines(many);  // the one for the compiler
                from += static_cast<std::ptrdiff_t>(items) * last.from;
                target += engine::cache_line;
            }
        });
}

}  // namespace

void gather(Examples examples, const std::int64_t* indices, std::size_t count, std::byte* to) {
    std::size_t item = examples.item_size;
    const std::size_t size = lay_out(examples.axes, item);
    if (!examples.axes.empty() && examples.axes.back().from == static_cast<std::ptrdiff_t>(item)) {
        item *= examples.axes.back().size;  // a run of items is copied as one
        examples.axes.pop_back();
    }
    if (examples.axes.empty()) return gather_runs(examples, size, item, indices, count, to);
    switch (item) {
        case 1:
            return gather_scattered<1>(std::move(examples), size, indices, count, to);
        case 2:
            return gather_scattered<2>(std::move(examples), size, indices, count, to);
        case 4:
            return gather_scattered<4>(std::move(examples), size, indices, count, to);
        case 8:
            return gather_scattered<8>(std::move(examples), size, indices, count, to);
        case 16:
            return gather_scattered<16>(std::move(examples), size, indices, count, to);
        default:
            return gather_runs(examples, size, item, indices, count, to);
    }
}

}  // namespace schuss::data
