#include "bindings/pieces.hpp"

#include <pybind11/stl.h>

#include <utility>

#include "bindings/flat_array.hpp"
#include "bindings/gil.hpp"
#include "sweep/level.hpp"

namespace schuss::bindings {
namespace {

/// Pieces of a parameter end at multiples of this. So they have whole blocks of 8-bit state and of
/// the sums of squares.
constexpr std::size_t unit = sweep::stats_block;

/// The items of a state that have this many elements.
std::size_t items_of(const ArrayView& state, std::size_t elements) {
    constexpr std::size_t block = numbers::block_of(numbers::DType::square8);
    return has_blocks(state) ? (elements + block - 1) / block : elements;
}

std::size_t alignment_of(const ArrayView& state) {
    if (has_blocks(state)) return alignof(numbers::Square8);
    return state.itemsize() / (state.dtype().kind() == 'c' ? 2 : 1);
}

}  // namespace

Pieces::Pieces(py::handle ends, py::handle begin, const Parameters& parameters, std::string call)
    : parameters_(parameters),
      call_(std::move(call)),
      begin_(py::reinterpret_borrow<py::object>(begin)) {
    for (const Parameter& parameter : parameters) sizes_.push_back(parameter.array().size());
    std::size_t i = 0, first = 0;  // the parameter at hand, and the elements before it
    std::size_t last = 0;          // the end of the piece before
    for (const auto end : ends.cast<std::vector<std::size_t>>()) {
        const auto wrong = [&, k = pieces_.size()](const std::string& expected) {
            return py::value_error(call_ + ": ends[" + std::to_string(k) + "] is " +
                                   std::to_string(end) + ", expected " + expected);
        };
        if (end < last) throw wrong("ascending numbers");
        while (i < sizes_.size() && first + sizes_[i] <= last) first += sizes_[i++];
        Piece& piece = pieces_.emplace_back(Piece{last, end, i, true});
        piece.is_in_one = i < sizes_.size() && end <= first + sizes_[i];
        while (i < sizes_.size() && first + sizes_[i] < end) first += sizes_[i++];
        if (i == sizes_.size() && end > first) {
            throw wrong("at most " + std::to_string(first) + ", the number of elements");
        }
        const bool is_end = i == sizes_.size() || end == first + sizes_[i];
        if (!is_end && (end - first) % unit != 0) {
            throw wrong("a multiple of " + std::to_string(unit) +
                        " from the beginning of a parameter, or the end of one");
        }
        last = end;
    }
    while (i < sizes_.size()) first += sizes_[i++];
    if (last != first) {
        throw py::value_error(call_ + ": ends has " + std::to_string(last) +
                              " as the last number, expected " + std::to_string(first) +
                              ", the number of elements");
    }
}

void Pieces::prepare(engine::Plan& plan) const {
    if (!plan.is_flat()) {
        throw py::value_error(call_ +
                              ": a step in pieces has arrays with gaps, or in different memory "
                              "orders, expected contiguous arrays with one axis");
    }
    plan.prepare_ranges(sizes_);
}

void Pieces::run(engine::Step& step) const {
    for (std::size_t k = 0; k < pieces_.size(); ++k) {
        const Piece& piece = pieces_[k];
        const py::object arrays = begin_(k);
        std::vector<ArrayView> states;
        std::vector<std::byte*> addresses;
        if (!arrays.is_none()) states = states_of(k, arrays);
        for (const ArrayView& state : states) addresses.push_back(state.data());
        if (piece.begin == piece.end) continue;
        run_without_gil(piece.end - piece.begin, [&]() noexcept {
            step.run_range({piece.begin, piece.end, states.empty() ? nullptr : addresses.data()});
        });
    }
    begin_(pieces_.size());
}

/// Arrays that have the states of a piece. TypeError or ValueError unless they go with it.
std::vector<ArrayView> Pieces::states_of(std::size_t piece, py::handle arrays) const {
    const auto& [begin, end, index, is_in_one] = pieces_[piece];
    const std::string argument = "the states of piece " + std::to_string(piece);
    if (!py::isinstance<py::sequence>(arrays) || !is_in_one) {
        throw py::type_error(call_ + ": " + argument + " are given as " +
                             py::str(py::type::handle_of(arrays)).cast<std::string>() +
                             ", expected None" +
                             (is_in_one ? " or a list of arrays" : " for several parameters"));
    }
    const auto given = arrays.cast<std::vector<py::object>>();
    const Name name{call_, argument};
    std::vector<ArrayView> views;
    for (const Parameter::AuxArray& state : parameters_[index].aux_arrays()) {
        if (state.role != engine::Role::state) continue;
        if (views.size() == given.size()) throw py::value_error(name.text() + " are too few");
        const ArrayView& view = views.emplace_back(given[views.size()], name);
        check_flat(view, name, alignment_of(state.array));
        const std::size_t items = items_of(state.array, end - begin);
        if (!view.writeable() || !view.dtype().equal(state.array.dtype()) || view.size() != items) {
            throw py::value_error(name.text() +
                                  " have the wrong dtype or size, or are read-only, expected " +
                                  std::to_string(items) + " items in the dtype of " + state.name);
        }
    }
    if (views.size() < given.size()) throw py::value_error(name.text() + " are too many");
    return views;
}

}  // namespace schuss::bindings
