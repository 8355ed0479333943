#include "engine/copy.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SCHUSS_HAS_SHUFFLE 1
#endif
#endif

namespace schuss::engine {
namespace {

// An axis shorter than this is not worth an inner loop.
constexpr std::size_t shortest_loop = 8;

void prefetch([[maybe_unused]] const std::byte* address) {
#if defined(__GNUC__)
    constexpr int to_read = 0, second_level = 2;
    __builtin_prefetch(address, to_read, second_level);
#endif
}

/// A complex number of two float64.
struct Pair {
    std::uint64_t at[2];
};

template <typename Word>
void copy_run(std::size_t count, const std::byte* from, std::ptrdiff_t from_stride, std::byte* to,
              std::ptrdiff_t to_stride) {
    for (std::size_t i = 0; i < count; ++i) {
        std::memcpy(to, from, sizeof(Word));  // memcpy, because the array may be unaligned
        from += from_stride;
        to += to_stride;
    }
}

#ifdef SCHUSS_HAS_SHUFFLE

template <typename Word>
using Vector [[gnu::vector_size(16)]] = Word;

void transpose_vectors(Vector<std::uint32_t>* v) {
    const auto a = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5);
    const auto b = __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
    const auto c = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5);
    const auto d = __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
    v[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
    v[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
    v[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
    v[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}

void transpose_vectors(Vector<std::uint16_t>* v) {
    // Each round interleaves the two halves: elements whose rows differ in one more bit meet.
    for (int round = 0; round < 3; ++round) {
        Vector<std::uint16_t> next[8];
        for (int i = 0; i < 4; ++i) {
            next[2 * i] = __builtin_shufflevector(v[i], v[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
            next[2 * i + 1] = __builtin_shufflevector(v[i], v[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        for (int i = 0; i < 8; ++i) v[i] = next[i];
    }
}

void transpose_vectors(Vector<std::uint64_t>* v) {
    const auto first = v[0];
    v[0] = __builtin_shufflevector(first, v[1], 0, 2);
    v[1] = __builtin_shufflevector(first, v[1], 1, 3);
}

/// Transposes a square whose side is a cache line, so that whole lines are read and written.
template <typename Word>
void transpose_square(const std::byte* from, std::ptrdiff_t from_pitch, std::byte* to,
                      std::ptrdiff_t to_pitch) {
    constexpr std::ptrdiff_t side = cache_line / sizeof(Word);
    constexpr std::ptrdiff_t lanes = sizeof(Vector<Word>) / sizeof(Word);
    constexpr std::ptrdiff_t word = sizeof(Word);
    for (std::ptrdiff_t row = 0; row < side; row += lanes) {
        for (std::ptrdiff_t column = 0; column < side; column += lanes) {
            Vector<Word> v[lanes];
            for (std::ptrdiff_t k = 0; k < lanes; ++k) {
                std::memcpy(&v[k], from + (column + k) * from_pitch + row * word, sizeof v[k]);
            }
            transpose_vectors(v);
            for (std::ptrdiff_t k = 0; k < lanes; ++k) {
                std::memcpy(to + (row + k) * to_pitch + column * word, &v[k], sizeof v[k]);
            }
        }
    }
}

/// Copies a plane whose source is contiguous along one axis and whose destination is contiguous
/// along the other. Prefetches the next squares: their lines are too far apart for the hardware
/// prefetcher.
template <typename Word>
void transpose(const CopyAxis& read, const CopyAxis& write, const std::byte* from, std::byte* to) {
    constexpr std::size_t side = cache_line / sizeof(Word);
    for (std::size_t j = 0; j < write.size; j += side) {
        const std::size_t columns = std::min(side, write.size - j);
        for (std::size_t i = 0; i < read.size; i += side) {
            const std::size_t rows = std::min(side, read.size - i);
            const std::byte* source = from + static_cast<std::ptrdiff_t>(j) * write.from +
                                      static_cast<std::ptrdiff_t>(i) * read.from;
            std::byte* target = to + static_cast<std::ptrdiff_t>(j) * write.to +
                                static_cast<std::ptrdiff_t>(i) * read.to;
            constexpr bool has_square = !std::is_same_v<Word, Pair> && sizeof(Word) > 1;
            if (rows == side && columns == side) {
                const std::byte* next = source + static_cast<std::ptrdiff_t>(side) * write.from;
                for (std::size_t k = 0; k < side; ++k, next += write.from) prefetch(next);
                if constexpr (has_square) {  // a Pair fills a whole vector; single bytes are rare
                    transpose_square<Word>(source, write.from, target, read.to);
                    continue;
                }
            }
            for (std::size_t k = 0; k < rows; ++k) {
                copy_run<Word>(columns, source, write.from, target, write.to);
                source += read.from;
                target += read.to;
            }
        }
    }
}

#endif

template <typename Word>
void copy_plane(const CopyAxis& outer, const CopyAxis& inner, const std::byte* from,
                std::byte* to) {
#ifdef SCHUSS_HAS_SHUFFLE
    constexpr auto word = static_cast<std::ptrdiff_t>(sizeof(Word));
    if (outer.from == word && inner.to == word) return transpose<Word>(outer, inner, from, to);
    if (inner.from == word && outer.to == word) return transpose<Word>(inner, outer, from, to);
#endif
    for (std::size_t i = 0; i < outer.size; ++i) {
        copy_run<Word>(inner.size, from, inner.from, to, inner.to);
        from += outer.from;
        to += outer.to;
    }
}

/// Copies along all axes. The last is the innermost.
template <typename Word>
void copy(const CopyAxis* axes, std::size_t count, const std::byte* from, std::byte* to) {
    constexpr auto word = static_cast<std::ptrdiff_t>(sizeof(Word));
    const CopyAxis& inner = axes[count - 1];
    const bool contiguous = inner.from == word && inner.to == word;
    if (count == 2 && !contiguous) return copy_plane<Word>(axes[0], inner, from, to);
    if (count > 1) {
        for (std::size_t i = 0; i < axes->size; ++i) {
            copy<Word>(axes + 1, count - 1, from, to);
            from += axes->from;
            to += axes->to;
        }
    } else if (contiguous) {
        std::memcpy(to, from, inner.size * sizeof(Word));
    } else {
        copy_run<Word>(inner.size, from, inner.from, to, inner.to);
    }
}

/// Moves the axis with the smallest stride on one side to the end of the first count axes.
void move_smallest_last(CopyAxes& axes, std::size_t count, std::ptrdiff_t CopyAxis::* stride) {
    const auto smallest =
        std::min_element(axes.at, axes.at + count, [stride](const CopyAxis& a, const CopyAxis& b) {
            const bool a_short = a.size < shortest_loop, b_short = b.size < shortest_loop;
            if (a_short != b_short) return b_short;
            return magnitude(a.*stride) < magnitude(b.*stride);
        });
    std::iter_swap(smallest, axes.at + count - 1);
}

}  // namespace

std::vector<CopyAxis> coalesced(const std::vector<CopyAxis>& axes) {
    std::vector<CopyAxis> result = axes;
    merge_adjacent(result, [](const CopyAxis& axis) { return std::array{axis.from, axis.to}; });
    return result;
}

void copy_box(CopyAxes& axes, std::size_t item_size, const std::byte* from,
              std::byte* to) noexcept {
    if (axes.count == 0) axes.at[axes.count++] = {1, 0, 0};
    // Writes run along the last axis, reads along the one before it.
    move_smallest_last(axes, axes.count, &CopyAxis::to);
    if (axes.count > 1) move_smallest_last(axes, axes.count - 1, &CopyAxis::from);
    if (item_size == 1) {
        copy<std::uint8_t>(axes.at, axes.count, from, to);
    } else if (item_size == 2) {
        copy<std::uint16_t>(axes.at, axes.count, from, to);
    } else if (item_size == 4) {
        copy<std::uint32_t>(axes.at, axes.count, from, to);
    } else if (item_size == 8) {
        copy<std::uint64_t>(axes.at, axes.count, from, to);
    } else {
        copy<Pair>(axes.at, axes.count, from, to);
    }
}

}  // namespace schuss::engine
