#include "data/gather.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

namespace schuss::data {
namespace {

/// The index of an example, and its position in the result.
struct Entry {
    std::int64_t index;
    std::size_t position;
};

/// The entries sorted by index: a radix sort with one pass for each eleven bits.
std::vector<Entry> sorted(const std::int64_t* indices, std::size_t count) {
    constexpr int bits = 11;
    std::vector<Entry> entries(count), other(count);
    std::uint64_t all = 0;
    for (std::size_t i = 0; i < count; ++i) {
        entries[i] = {indices[i], i};
        all |= static_cast<std::uint64_t>(indices[i]);
    }
    for (int shift = 0; shift < 64 && all >> shift != 0; shift += bits) {
        const auto digit = [shift](const Entry& entry) {
            return static_cast<std::size_t>(entry.index >> shift) % (std::size_t{1} << bits);
        };
        std::array<std::size_t, 1 << bits> begin = {};
        for (const Entry& entry : entries) ++begin[digit(entry)];
        std::size_t sum = 0;
        for (std::size_t& each : begin) sum += std::exchange(each, sum);
        for (const Entry& entry : entries) other[begin[digit(entry)]++] = entry;
        entries.swap(other);
    }
    return entries;
}

/// Simplifies the axes of an example, and sets the strides of its contiguous copy. Returns the size
/// of the copy in bytes.
std::size_t set_dense_strides(std::vector<engine::CopyAxis>& axes, std::size_t item_size) {
    axes = engine::coalesced(axes);
    std::size_t size = item_size;
    for (auto axis = axes.rbegin(); axis != axes.rend(); ++axis) {
        axis->to = static_cast<std::ptrdiff_t>(size);
        size *= axis->size;
    }
    return size;
}

/// Copies examples that consist of contiguous runs one after the other, and prefetches the next
/// ones.
void gather_runs(const Examples& examples, std::size_t example_size, std::size_t run,
                 const std::int64_t* indices, std::size_t count, std::byte* to) {
    constexpr std::size_t ahead = 8;
    const std::size_t prefetched = std::min<std::size_t>(run, 1024);
    for (std::size_t i = 0; i < count; ++i, to += example_size) {
        if (i + ahead < count) {
            const std::byte* const next = examples.first + indices[i + ahead] * examples.stride;
            for (std::size_t b = 0; b < prefetched; b += engine::cache_line) {
                __builtin_prefetch(next + b);
            }
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

/// Copies examples whose elements are far apart, such as columns. It goes by the order of memory,
/// one cache line of each example at a time, so that elements of neighbouring examples, which share
/// a cache line, are read together.
template <std::size_t size>
void gather_scattered(Examples examples, std::size_t example_size, const std::int64_t* indices,
                      std::size_t count, std::byte* to) {
    const engine::CopyAxis last = examples.axes.back();
    examples.axes.pop_back();
    const std::vector<Entry> entries = sorted(indices, count);
    constexpr std::size_t items = engine::cache_line / size, ahead = 16;
    engine::for_each(
        examples.axes, examples.first, to, [&](const std::byte* from, std::byte* target) {
            for (std::size_t first = 0; first < last.size; first += items) {
                const std::size_t left = std::min(items, last.size - first);
                const auto copy_lines = [&](std::size_t width) {
                    for (std::size_t i = 0; i < count; ++i) {
                        if (i + ahead < count) {
                            const Entry& next = entries[i + ahead];
                            const std::byte* source = from + next.index * examples.stride;
                            for (std::size_t k = 0; k < width; ++k, source += last.from) {
                                __builtin_prefetch(source);
                            }
                            __builtin_prefetch(target + next.position * example_size, 1);
                        }
                        const Entry& entry = entries[i];
                        copy_line<size>(from + entry.index * examples.stride, last.from, width,
                                        target + entry.position * example_size);
                    }
                };
                // A constant width lets the compiler unroll the loops.
                left == items ? copy_lines(items) : copy_lines(left);
                from += static_cast<std::ptrdiff_t>(items) * last.from;
                target += engine::cache_line;
            }
        });
}

}  // namespace

void gather(Examples examples, const std::int64_t* indices, std::size_t count, std::byte* to) {
    std::size_t item = examples.item_size;
    const std::size_t size = set_dense_strides(examples.axes, item);
    if (!examples.axes.empty() && examples.axes.back().from == static_cast<std::ptrdiff_t>(item)) {
        item *= examples.axes.back().size;  // a contiguous run is copied as one item
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
