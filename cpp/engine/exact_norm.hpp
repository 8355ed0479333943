// The Euclidean norm of numbers that are added in any order and by several threads.
//
// The bits of the norm depend only on the numbers: each square is rounded to double precision, with
// an exponent of any size, and the squares are added exactly, as integers, those of numbers with
// the same exponent to one sum (Neal, "Fast exact summation using small and large
// superaccumulators", 2015).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace schuss::engine {

class ExactNorm {
  public:
    /// Adds numbers. Subnormals count as zero.
    void add(const double* values, std::size_t count) noexcept;

    /// Adds the numbers of another norm.
    void add(const ExactNorm& other) noexcept;

    /// The norm: NaN with a NaN, otherwise infinite with an infinity.
    double value() const noexcept;

    /// The norm as integers. Those of up to 2^20 norms can be added one by one: together they are
    /// the norm of all their numbers.
    static constexpr std::size_t part_count = 2048 * 3 + 2;
    void write_parts(std::uint64_t* parts) const noexcept;
    static ExactNorm from_parts(const std::uint64_t* parts) noexcept;

  private:
    /// An integer of 128 bits.
    struct Sum {
        std::uint64_t low, high;

        void add(const Sum& other) {
            low += other.low;
            high += other.high + (low < other.low ? 1 : 0);
        }
        void divide_by_four() {
            low = low >> 2 | high << 62;
            high >>= 2;
        }
    };

    std::array<Sum, 2048> squares_ = {};  // for each exponent of a double
    double nonfinite_ = 0;                // the sum of the squares of infinities and NaN
};

}  // namespace schuss::engine
