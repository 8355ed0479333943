// The sum of arrays in a fixed order, in one pass over memory.
//
// It has the bits of gradients that one optimizer accumulates: the same loops add the arrays, so
// each product and each sum is rounded to the format of the sum, and subnormal numbers count as
// zero.
#pragma once

#include <cstddef>
#include <vector>

#include "engine/formula.hpp"
#include "numbers/dtype.hpp"
#include "sweep/level.hpp"

namespace schuss::data {

class ArraySum {
  public:
    /// A contiguous array, and the number by which its elements are multiplied.
    struct Term {
        numbers::DType dtype;
        const std::byte* data;
        double weight = 1;
    };

    /// out: contiguous, in a compute format that holds the values of every term. It may be the
    /// array of a term.
    ArraySum(const std::vector<Term>& terms, numbers::DType dtype, std::byte* out,
             std::size_t count);
    ArraySum(const ArraySum&) = delete;
    ArraySum& operator=(const ArraySum&) = delete;

    /// Writes the sum, on the threads of the pool.
    void run() const noexcept;

  private:
    struct Addend {
        sweep::Call call;
        const std::byte* data;
        std::size_t size;  // of an element
    };

    void run_piece(std::size_t begin, std::size_t count) const noexcept;

    numbers::DType dtype_;
    std::byte* out_;
    std::size_t count_;
    std::size_t bytes_;                    // of all arrays
    bool overwrites_term_ = false;         // whether the sum is written over a term
    std::vector<engine::Update> updates_;  // to which the calls refer
    std::vector<Addend> addends_;
};

}  // namespace schuss::data
