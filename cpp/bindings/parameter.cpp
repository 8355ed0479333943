#include "bindings/parameter.hpp"

#include <algorithm>
#include <utility>

namespace schuss::bindings {
namespace {

std::byte* address(const py::array& array) {
    return reinterpret_cast<std::byte*>(fields(array).data);
}

bool has_shape(const py::array& array, const std::vector<std::size_t>& shape) {
    const auto& f = fields(array);
    return static_cast<std::size_t>(f.nd) == shape.size() &&
           std::equal(shape.begin(), shape.end(), f.dimensions, [](std::size_t a, py::ssize_t b) {
               return a == static_cast<std::size_t>(b);
           });
}

}  // namespace

Parameter::Parameter(py::handle object, const Name& name)
    : name_(name.argument),
      array_(as_array(object, name)),
      number_(number_of(array_, name)),
      shape_(shape_of(array_)),
      strides_(array_.strides(), array_.strides() + array_.ndim()),
      dtype_(array_.dtype()),
      data_(address(array_)) {
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
    last_.dtype = py::object();
}

void Parameter::append_written(std::vector<WrittenMemory::Entry>& out) const {
    out.push_back(WrittenMemory::entry(array_, name_));
    for (std::size_t i = 0; i < states_.size(); ++i) {
        out.push_back(WrittenMemory::entry(states_[i], state_names_[i]));
    }
}

void Parameter::check_unchanged(const std::string& call) const {
    const auto& f = fields(array_);
    if (address(array_) != data_ || f.descr != dtype_.ptr() || !has_shape(array_, shape_) ||
        !std::equal(strides_.begin(), strides_.end(), f.strides)) {
        throw py::value_error(call + ": " + name_ +
                              " was resized, reshaped or seen as another dtype since the optimizer "
                              "was made, expected the same memory, shape, strides and dtype");
    }
    if (!array_.writeable()) {
        throw py::value_error(call + ": " + name_ + " is read-only, expected a writeable array");
    }
}

bool Parameter::looks_like_the_last(const py::array& gradient) const {
    const auto& f = fields(gradient);
    return f.descr == last_.dtype.ptr() && has_shape(gradient, shape_) &&
           std::equal(last_.strides.begin(), last_.strides.end(), f.strides) &&
           reinterpret_cast<std::size_t>(f.data) % numbers::size_of(number_) == last_.misalignment;
}

bool Parameter::take_like_the_last(const py::array& gradient, engine::Item& item) const {
    const auto first = reinterpret_cast<std::size_t>(fields(gradient).data);
    if (!looks_like_the_last(gradient) || first - last_.before < last_.gap.begin ||
        first + last_.after > last_.gap.end) {
        return false;
    }
    item.data[rules::gradient_operand] =
        address(gradient) + item.layout.offset(rules::gradient_operand);
    return true;
}

bool Parameter::lies_as_taken(const py::array& gradient, const engine::Item& item) const {
    return looks_like_the_last(gradient) &&
           item.data[rules::gradient_operand] ==
               address(gradient) + item.layout.offset(rules::gradient_operand);
}

void Parameter::take(const py::array& gradient, const Name& name, const WrittenMemory& written,
                     engine::Item& item) {
    last_.dtype = py::object();  // until all is known of this one
    check_like(gradient, name, array_, name_);
    const Bounds bounds = bounds_of(gradient);
    Bounds gap{1, 0};
    written.check_apart(gradient, bounds, name, gap);

    std::vector<const py::array*> arrays = {&array_, &gradient};
    for (const py::array& state : states_) arrays.push_back(&state);
    std::vector<engine::Operand> operands;
    for (const py::array* array : arrays) operands.push_back({address(*array), array->strides()});
    item.number = number_;
    item.layout =
        engine::Layout(shape_, operands, numbers::size_of(number_), engine::tile_elements());
    for (std::size_t k = 0; k < arrays.size(); ++k) {
        item.data[k] = address(*arrays[k]) + item.layout.offset(k);
    }

    const auto first = reinterpret_cast<std::size_t>(gradient.data());
    last_ = {gradient.dtype(),
             first % numbers::size_of(number_),
             first - bounds.begin,
             bounds.end - first,
             gap,
             {gradient.strides(), gradient.strides() + gradient.ndim()}};
}

}  // namespace schuss::bindings
