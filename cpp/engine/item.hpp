// The arrays of one parameter, laid out, and what a run does with them.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "engine/formula.hpp"
#include "engine/memory_order.hpp"
#include "engine/operand.hpp"
#include "engine/tile_pass.hpp"
#include "engine/tiles.hpp"

namespace schuss::engine {

/// The arrays of one parameter: the parameter, its gradient, its states, its master, its average
/// and its copy.
struct Item {
    numbers::Formats formats;
    std::size_t group = 0;  // whose hyperparameters it has
    Layout layout;
    std::byte* data[max_arrays] = {};  // where the traversal of each array begins
    MemoryOrder gradient_order;
    std::size_t elements = 0;  // of the parameter, two for each complex number
    bool rests = false;        // the parameter has no gradient in this step
    RowStates row_states;

    Item() = default;

    /// A parameter that rests. operands: its average and the parameter itself, of which steps
    /// update the average; without an average, the parameter twice, which steps only read; its
    /// master if there is one. None if they do not read it.
    static Item resting(std::size_t group_index, const std::vector<std::size_t>& shape,
                        std::size_t components, const std::vector<Operand>& operands);

    /// Lays out arrays of one shape: the parameter, its gradient, its states, its master, its
    /// average, its copy. rows: the states of a row-wise rule, whose parameter is in C order.
    Item(std::size_t group_index, const std::vector<std::size_t>& shape,
         const std::vector<Operand>& operands, const RowStates& rows = {});

    /// The format in which the average reads the parameter: if that has a master, its values.
    numbers::DType averaged() const {
        if (formats.master != numbers::Master::none) return numbers::DType::float32;
        return rests ? formats.gradient : formats.parameter;
    }

    /// Whether a run leaves all arrays of the parameter alone.
    bool has_no_arrays() const { return layout.operands() == 0; }

    /// The address of the gradient's element at index zero.
    const std::byte* gradient() const {
        return data[rules::gradient_operand] - layout.offset(rules::gradient_operand);
    }
    void set_gradient(std::byte* first) {
        data[rules::gradient_operand] = first + layout.offset(rules::gradient_operand);
    }
};

/// The update of an item's average.
sweep::Call average_call(const Item& item, const Update& average, bool prefetches);

/// A pass over an item, with the call to which it refers. Streams, norms and `clear_gradients` are
/// still to be set.
struct ItemPass {
    /// update: nullptr if parameters stay. of_average: of the parameters; nullptr if they have
    /// none.
    ItemPass(const Item& item, const Update* update, const Update* of_average,
             const sweep::Level& level, bool prefetches)
        : average(of_average != nullptr ? std::optional(average_call(item, *of_average, prefetches))
                                        : std::nullopt),
          pass{.level = level,
               .update = !item.rests && update != nullptr ? update->call(item.formats, prefetches)
                         : item.rests && average          ? *average
                                                          : sweep::Call{},
               .average = average ? &*average : nullptr,
               .rests = item.rests} {
        if (item.rests || update == nullptr) return;
        pass.formula = update;
        pass.row_states = item.row_states;
    }
    ItemPass(const ItemPass&) = delete;
    ItemPass& operator=(const ItemPass&) = delete;

    std::optional<sweep::Call> average;
    Pass pass;
};

}  // namespace schuss::engine
