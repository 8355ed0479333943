// Many arrays as one range of tiles: prepared once, and run by the crew.
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

/// Another size from which on steps are shared; returns the one before. No bit depends on it.
std::size_t set_worth_sharing(std::size_t elements);

class Plan {
  public:
    std::vector<Item> items;

    /// To be called before the layout of an item changes.
    void disarrange() { arranged_ = false; }

    /// To be called before each run; returns the elements of all items together.
    std::size_t prepare();

    /// Runs one rule's kernels over every tile of every item.
    void run(const sweep::Kernels& kernels, rules::Decay decay,
             const Coefficients& coefficients) noexcept;

  private:
    void arrange();

    /// Where a share of the work begins: a tile of a large array, or many small arrays.
    struct Share {
        std::size_t item, tile;
    };

    std::vector<Share> shares_;  // and one past the last
    std::vector<Scratch> scratch_;
    std::size_t scratch_bytes_ = 0;
    std::size_t elements_ = 0;
    std::size_t threads_ = 1;  // of the run that comes
    bool worth_waking_ = false;
    bool arranged_ = false;
};

}  // namespace schuss::engine
