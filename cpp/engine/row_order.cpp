#include "engine/row_order.hpp"

#include <algorithm>
#include <bit>
#include <stdexcept>

namespace schuss::engine {
namespace {

/// The bits of a row that one pass sorts by, at most, and the passes for all of its 32 bits.
constexpr unsigned most_digit_bits = 11;
constexpr unsigned most_passes = 3;

/// Fewer keys are sorted by comparisons.
constexpr std::size_t fewest_by_digits = 128;

/// How often each digit occurs, for each pass.
using Counts = std::uint32_t[most_passes][1u << most_digit_bits];

}  // namespace

void RowOrder::sort(const std::vector<std::int64_t>& indices, std::size_t rows) {
    const std::size_t count = indices.size();
    if (count > most || rows > most) throw std::length_error("more than 2**32 - 1 rows");
    if (count > 0 && indices == sorted_) return;
    sorted_.clear();
    keys_.resize(count);
    bool is_sorted = true;
    std::uint64_t last = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint64_t key = static_cast<std::uint64_t>(indices[i]) << 32 | i;
        is_sorted = is_sorted && last <= key;
        keys_[i] = last = key;
    }
    if (!is_sorted && count < fewest_by_digits) {
        std::sort(keys_.begin(), keys_.end());
    } else if (!is_sorted) {
        sort_keys(static_cast<unsigned>(std::bit_width(rows - 1)));
    }
    find_rows();
    sorted_ = indices;
}

/// Sorts the keys by their upper halves, which have this many bits: digit by digit, from the last
/// one. Keys with the same digit keep their order.
void RowOrder::sort_keys(unsigned bits) {
    const unsigned passes = (bits + most_digit_bits - 1) / most_digit_bits;
    const unsigned digit_bits = (bits + passes - 1) / passes;
    const std::uint64_t mask = (std::uint64_t{1} << digit_bits) - 1;
    const auto digit = [=](std::uint64_t key, unsigned pass) {
        return key >> (32 + pass * digit_bits) & mask;
    };
    Counts counts;
    for (unsigned pass = 0; pass < passes; ++pass) std::fill_n(counts[pass], mask + 1, 0);
    for (const std::uint64_t key : keys_) {
        for (unsigned pass = 0; pass < passes; ++pass) ++counts[pass][digit(key, pass)];
    }
    other_.resize(keys_.size());
    for (unsigned pass = 0; pass < passes; ++pass) {
        std::uint32_t begin = 0;  // of the keys with a digit
        for (std::size_t i = 0; i <= mask; ++i) {
            const std::uint32_t number = counts[pass][i];
            counts[pass][i] = begin;
            begin += number;
        }
        for (const std::uint64_t key : keys_) other_[counts[pass][digit(key, pass)]++] = key;
        keys_.swap(other_);
    }
}

/// Finds the rows and their places in sorted keys.
void RowOrder::find_rows() {
    const std::size_t count = keys_.size();
    places_.resize(count);
    rows_.resize(count);
    begins_.resize(count + 1);
    std::size_t found = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const auto row = static_cast<std::uint32_t>(keys_[i] >> 32);
        places_[i] = static_cast<std::uint32_t>(keys_[i]);
        if (found > 0 && rows_[found - 1] == row) continue;
        rows_[found] = row;
        begins_[found++] = static_cast<std::uint32_t>(i);
    }
    rows_.resize(found);
    begins_[found] = static_cast<std::uint32_t>(count);
}

}  // namespace schuss::engine
