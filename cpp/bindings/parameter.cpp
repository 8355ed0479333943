#include "bindings/parameter.hpp"

#include <utility>

namespace schuss::bindings {
namespace {

std::byte* address(const py::array& array) {
    return reinterpret_cast<std::byte*>(fields(array).data);
}

}  // namespace

Parameter::Parameter(py::handle object, const Name& name)
    : name_(name.argument), array_(as_array(object, name)), number_(number_of(array_, name)) {
    check_writable(array_, name);
}

void Parameter::set_states(std::vector<py::array> states, const std::string& call,
                           const std::vector<std::string>& names) {
    for (std::size_t i = 0; i < states.size(); ++i) {
        const Name name{call, names[i]};
        check_like(states[i], name, array_, name_);
        check_writable(states[i], name);
    }
    states_ = std::move(states);
    state_names_ = names;
}

void Parameter::append_written(std::vector<WrittenMemory::Entry>& out) const {
    out.push_back(WrittenMemory::entry(array_, name_));
    for (std::size_t i = 0; i < states_.size(); ++i) {
        out.push_back(WrittenMemory::entry(states_[i], state_names_[i]));
    }
}

void Parameter::refuse_change(const std::string& call) const {
    if (!array_.writeable()) {
        throw py::value_error(call + ": " + name_ + " is read-only, expected a writeable array");
    }
    throw py::value_error(call + ": " + name_ +
                          " was resized, reshaped or seen as another dtype since the optimizer "
                          "was made, expected the same memory, shape, strides and dtype");
}

Bounds Parameter::take(const py::array& gradient, const Name& name, const WrittenMemory& written,
                       engine::Item& item) const {
    check_like(gradient, name, array_, name_);
    Bounds gap{1, 0};
    written.check_apart(gradient, bounds_of(gradient), name, gap);
    check_like(gradient, name, array_, name_);  // again: that may have let others run

    std::vector<const py::array*> arrays = {&array_, &gradient};
    for (const py::array& state : states_) arrays.push_back(&state);
    std::vector<engine::Operand> operands;
    for (const py::array* array : arrays) operands.push_back({address(*array), array->strides()});
    item.number = number_;
    item.layout = engine::Layout(shape_of(array_), operands, numbers::size_of(number_),
                                 engine::tile_elements());
    for (std::size_t k = 0; k < arrays.size(); ++k) {
        item.data[k] = address(*arrays[k]) + item.layout.offset(k);
    }
    return gap;
}

}  // namespace schuss::bindings
