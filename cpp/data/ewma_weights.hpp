// The sums of the weights of an average, for the bias correction.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <limits>

#include "data/ewma.hpp"

namespace schuss::data {

/// Weights are computed in blocks of this size, with one exponential for each block.
constexpr std::size_t weight_block = 1024;

/// The weight of t values: 1 - beta^t, accurate for a small 1-beta too.
inline double one_minus_power(double one_minus_beta, double t) {
    return one_minus_beta < 1 ? -::expm1(t * ::log1p(-one_minus_beta)) : t > 0 ? 1 : 0;
}

/// The weight of s + t values, from the weights of the t later and the s earlier ones.
inline double combined_weight(double later, double earlier) {
    return later + (1 - later) * earlier;
}

/// The number of steps, of a series of `size`, whose divisors are not all 1: whole blocks, or all.
template <typename T>
std::size_t corrected_steps(T one_minus_beta, std::size_t size) {
    std::size_t steps = 0;
    while (steps < size &&
           static_cast<T>(weight_of(one_minus_beta, static_cast<std::int64_t>(steps + 1))) != 1) {
        steps += weight_block;
    }
    return steps < size ? steps : size;
}

/// The divisors of the bias correction, a block of t at a time. They are computed from 1-beta as T
/// rounds it, so that they are the sums of the weights that the average uses.
template <typename T>
class Weights {
  public:
    explicit Weights(T one_minus_beta) : one_minus_beta_(one_minus_beta) {}

    /// The divisors of t = first + 1 ... first + count, at most a block.
    const T* from(std::size_t first, std::size_t count) {
        if (first != first_) {
            for (; computed_ < count; ++computed_) {
                later_[computed_] =
                    one_minus_power(one_minus_beta_, static_cast<double>(computed_ + 1));
            }
            const double earlier = one_minus_power(one_minus_beta_, static_cast<double>(first));
            for (std::size_t i = 0; i < count; ++i) {
                divisors_[i] = static_cast<T>(combined_weight(later_[i], earlier));
            }
            first_ = first;
        }
        return divisors_;
    }

  private:
    double one_minus_beta_;
    std::size_t first_ = std::numeric_limits<std::size_t>::max();
    std::size_t computed_ = 0;
    double later_[weight_block];
    T divisors_[weight_block];
};

}  // namespace schuss::data
