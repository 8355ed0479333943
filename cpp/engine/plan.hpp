// Many arrays as one range of tiles: prepared once, and run by the crew.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "engine/gradient_stats.hpp"
#include "engine/memory_order.hpp"
#include "engine/scratch.hpp"
#include "engine/tile_pass.hpp"
#include "engine/tiles.hpp"
#include "numbers/dtype.hpp"
#include "numbers/wide.hpp"
#include "rules/registry.hpp"
#include "sweep/level.hpp"

namespace schuss::engine {

/// The coefficients of one step, cast once to each number format.
class Coefficients {
  public:
    Coefficients() = default;
    /// rate: the place of the rate, which may be too small for a format; 0 if there is none.
    explicit Coefficients(const rules::Coefficients& values, std::size_t rate = 0);

    /// Has the gradients multiplied by this; to be called once.
    void set_scale(const numbers::Wide& scale);

    struct Unheld {
        std::size_t place;
        double value;
    };

    /// A coefficient that the format takes for zero or for infinite, while it is neither.
    std::optional<Unheld> first_unheld(rules::Decay decay, numbers::DType number) const;

    /// number: a format that is computed in.
    const void* as(numbers::DType number) const;

  private:
    rules::Coefficients float64_ = {};
    std::array<float, std::tuple_size_v<rules::Coefficients>> float32_ = {};
    std::size_t rate_ = 0;
};

/// The arrays of one parameter: itself, its gradient, its states, what rides along.
struct Item {
    numbers::Formats formats;
    std::size_t group = 0;  // whose hyperparameters it has
    Layout layout;
    std::byte* data[max_arrays] = {};  // where the layout's walk begins
    MemoryOrder gradient_order;

    /// Of the gradient's first element.
    const std::byte* gradient() const {
        return data[rules::gradient_operand] - layout.offset(rules::gradient_operand);
    }
};

/// A rule for a step.
struct Update {
    const sweep::Kernels* kernels = nullptr;
    rules::Decay decay = rules::Decay::none;
    Coefficients coefficients;
};

/// One run over all items.
struct Run {
    const Update* groups = nullptr;   // by the items' groups; none: nothing but clearing gradients
    const Update* average = nullptr;  // of the parameters, if there are averages
    bool clear_gradients = false;
    /// What rounding at random begins with: the same numbers give the same bits.
    std::uint64_t seed = 0, step = 0;
};

/// Another size from which on steps are shared; returns the one before. No bit depends on it.
std::size_t set_parallel_threshold(std::size_t elements);

class Plan {
  public:
    std::vector<Item> items;

    /// To be called before the layout of an item changes.
    void invalidate() { built_ = false; }

    /// To be called before each run. Throws before anything is written.
    void prepare();

    /// Of all items together.
    std::size_t elements() const { return elements_; }

    /// To be called before a survey, after prepare.
    void prepare_survey();

    /// What the gradients are, all of them together.
    const GradientStats& survey() noexcept;

    /// Passes over every tile of every item.
    void run(const Run& run) noexcept;

  private:
    void build();

    /// Where a share of the work begins: a tile of a large array, or many small arrays.
    struct Share {
        std::size_t item, tile;
    };

    std::vector<Share> shares_;  // and one past the last
    std::vector<Scratch> scratch_;
    GradientStats survey_;
    std::size_t scratch_bytes_ = 0;
    std::size_t elements_ = 0;
    std::size_t threads_ = 1;  // of the run that comes
    bool worth_waking_ = false;
    std::vector<std::uint64_t> first_;  // for each item, how many elements lie before it
    bool at_random_ = false;            // whether a state is rounded so
    bool built_ = false;
};

}  // namespace schuss::engine
