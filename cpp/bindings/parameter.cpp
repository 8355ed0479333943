#include "bindings/parameter.hpp"

#include <utility>

#include "bindings/arrays.hpp"

namespace schuss::bindings {
namespace {

DtypeRule how_goes(engine::Role role) {
    switch (role) {
        case engine::Role::state:
            return DtypeRule::stochastic;
        case engine::Role::copy:
            return DtypeRule::half;
        default:
            return DtypeRule::compute;
    }
}

}  // namespace

Parameter::Parameter(ArrayView array, const Name& name)
    : name_(name.argument), array_(std::move(array)), number_(number_of(array_, name)) {
    check_writable(array_, name);
}

void Parameter::set_companions(std::vector<AuxArray> companions, const std::string& call) {
    std::vector<numbers::DType> formats;
    for (const auto& [role, array, argument] : companions) {
        const Name name{call, argument};
        formats.push_back(check_companion(array, name, how_goes(role), array_, name_));
        check_writable(array, name);
    }
    companions_ = std::move(companions);
    numbers_ = std::move(formats);
}

void Parameter::check_copy(const std::string& call) const {
    const ArrayView& copy = companions_.back().array;
    if (copy.has_its_memory() && copy.has_its_dtype()) return;
    throw py::value_error(call + ": the copy of " + name_ +
                          " has become read-only, was resized or seen as another dtype, expected "
                          "it as it was given");
}

void Parameter::check_shows_its_memory(const std::string& call) const {
    const auto check = [&call](const ArrayView& array, const std::string& name) {
        if (array.shows_its_memory({call, name})) return;
        throw py::value_error(call + ": " + name +
                              " was given other memory since the optimizer was made, expected the "
                              "same memory, shape, strides and dtype (write new values into it, or "
                              "make a new optimizer)");
    };
    check(array_, name_);
    if (companions_.empty() || companions_.back().role != engine::Role::copy) return;
    check(companions_.back().array, "the copy of " + name_);
}

bool Parameter::is_all_arrays() const {
    const bool copied = !companions_.empty() && companions_.back().role == engine::Role::copy;
    return array_.is_own_array() && (!copied || companions_.back().array.is_own_array());
}

int Parameter::traverse(visitproc visit, void* arg) const {
    if (const int result = array_.traverse(visit, arg); result != 0) return result;
    for (const AuxArray& companion : companions_) {
        if (const int result = companion.array.traverse(visit, arg); result != 0) return result;
    }
    return 0;
}

void Parameter::append_written(std::vector<Named>& out) const {
    out.push_back({array_, name_});
    for (const AuxArray& companion : companions_) out.push_back({companion.array, companion.name});
}

void Parameter::refuse_change(const std::string& call) const {
    if (!array_.array().writeable()) {
        throw py::value_error(call + ": " + name_ + " is read-only, expected a writeable array");
    }
    throw py::value_error(call + ": " + name_ +
                          " was resized, reshaped or seen as another dtype since the optimizer "
                          "was made, expected the same memory, shape, strides and dtype");
}

void Parameter::take(const ArrayView& gradient, const Name& name, engine::Item& item) const {
    const numbers::DType of_gradient =
        check_companion(gradient, name, DtypeRule::convertible, array_, name_);
    std::vector<engine::Operand> operands;
    const auto add = [&operands](engine::Role role, numbers::DType number, const ArrayView& array) {
        operands.push_back({role, number, array.data(), array.strides().data()});
    };
    item.formats = {number_, of_gradient, numbers::compute_dtype(number_)};
    add(engine::Role::parameter, number_, array_);
    add(engine::Role::gradient, of_gradient, gradient);
    for (std::size_t i = 0; i < companions_.size(); ++i) {
        add(companions_[i].role, numbers_[i], companions_[i].array);
        if (companions_[i].role == engine::Role::state) item.formats.state = numbers_[i];
    }
    item.layout = engine::Layout(array_.shape(), operands, engine::tile_elements());
    for (std::size_t k = 0; k < operands.size(); ++k) {
        item.data[k] = const_cast<std::byte*>(operands[k].data) + item.layout.offset(k);
    }
    const std::size_t item_size = numbers::size_of(of_gradient);
    const bool aligned = reinterpret_cast<std::size_t>(gradient.data()) % item_size == 0;
    item.gradient_order = engine::MemoryOrder(array_.shape(), array_.strides().data(),
                                              gradient.strides().data(), item_size, aligned);
}

}  // namespace schuss::bindings
