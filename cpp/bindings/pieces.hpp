// A step in pieces: Python is called before each, and may say where the states have its elements.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <string>
#include <vector>

#include "bindings/parameter.hpp"
#include "engine/step.hpp"

namespace schuss::bindings {

class Pieces {
  public:
    /// ends: where each piece ends, in elements of all parameters one after another, of which
    /// complex numbers count once. begin: called with the index of each piece before it runs, and
    /// with their number after the last. It returns None, or, where a piece lies in one parameter,
    /// arrays that have its states. The parameters must outlive the pieces. TypeError or ValueError
    /// unless they can be cut there.
    Pieces(py::handle ends, py::handle begin, const Parameters& parameters, std::string call);

    /// Call this after the plan's own `prepare`. ValueError unless its arrays are contiguous.
    void prepare(engine::Plan& plan) const;

    /// Makes a step that has begun, but for its end.
    void run(engine::Step& step) const;

  private:
    /// Elements of the parameter in which they begin, and perhaps of those after it.
    struct Piece {
        std::size_t begin, end;
        std::size_t parameter;
        bool is_in_one;
    };

    std::vector<ArrayView> states_of(std::size_t piece, py::handle arrays) const;

    const Parameters& parameters_;
    std::string call_;
    py::object begin_;
    std::vector<std::size_t> sizes_;  // of the parameters
    std::vector<Piece> pieces_;
};

}  // namespace schuss::bindings
