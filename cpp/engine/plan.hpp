// Many arrays, prepared once, and the run of a step over all their tiles.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "engine/layout.hpp"
#include "numbers/number.hpp"
#include "rules/book.hpp"
#include "sweep/level.hpp"

namespace schuss::engine {

/// The coefficients of one step, cast once to each number format.
class Coefficients {
  public:
    explicit Coefficients(const rules::Coefficients& values);
    const void* as(numbers::Number number) const;

  private:
    rules::Coefficients float64_;
    std::array<float, std::tuple_size_v<rules::Coefficients>> float32_;
};

/// The arrays of one parameter: itself, its gradient, its states.
struct Item {
    numbers::Number number;
    Layout layout;
    std::byte* data[rules::max_operands] = {};  // where the layout's walk begins
};

class Plan {
  public:
    std::vector<Item> items;

    /// Runs one rule's kernels over every tile of every item. Throws before it writes anything.
    void run(const sweep::Kernels& kernels, rules::Decay decay, const Coefficients& coefficients);

  private:
    Scratch scratch_;
};

}  // namespace schuss::engine
