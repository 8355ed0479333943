#include "bindings/parameter.hpp"

#include <utility>

namespace schuss::bindings {
namespace {

std::byte* address(const py::array& array) {
    return reinterpret_cast<std::byte*>(fields(array).data);
}

Goes how_goes(engine::Role role) {
    switch (role) {
        case engine::Role::state:
            return Goes::rounded_at_random;
        case engine::Role::copy:
            return Goes::halved;
        default:
            return Goes::as_computed;
    }
}

}  // namespace

Parameter::Parameter(py::handle object, const Name& name)
    : name_(name.argument), array_(as_array(object, name)), number_(number_of(array_, name)) {
    check_writable(array_, name);
}

void Parameter::set_companions(std::vector<Companion> companions, const std::string& call) {
    std::vector<numbers::Number> formats;
    for (const auto& [role, array, argument] : companions) {
        const Name name{call, argument};
        formats.push_back(check_goes_with(array, name, how_goes(role), array_, name_));
        check_writable(array, name);
    }
    for (Companion& companion : companions) {
        if (companion.role != engine::Role::copy) continue;
        // A view, so that whoever reshapes the array later does it to nobody else.
        copy_ = companion.array;
        companion.array = plain(copy_);
    }
    companions_ = std::move(companions);
    numbers_ = std::move(formats);
}

void Parameter::check_copy(const std::string& call) const {
    const py::array& view = companions_.back().array;  // the copy is the last of them
    if (copy_.writeable() && copy_.data() == view.data() && copy_.size() == view.size()) return;
    throw py::value_error(call + ": the copy of " + name_ +
                          " has become read-only or was resized, expected it as it was given");
}

int Parameter::traverse(visitproc visit, void* arg) const {
    Py_VISIT(array_.ptr());
    Py_VISIT(copy_.ptr());
    for (const Companion& companion : companions_) Py_VISIT(companion.array.ptr());
    return 0;
}

void Parameter::append_written(std::vector<WrittenMemory::Entry>& out) const {
    out.push_back(WrittenMemory::entry(array_, name_));
    for (const Companion& companion : companions_) {
        out.push_back(WrittenMemory::entry(companion.array, companion.name));
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
    check_goes_with(gradient, name, Goes::converted, array_, name_);
    Bounds gap{1, 0};
    written.check_apart(gradient, bounds_of(gradient), name, gap);
    // Again: that may have let others run.
    const numbers::Number of_gradient =
        check_goes_with(gradient, name, Goes::converted, array_, name_);

    std::vector<engine::Operand> operands;
    const auto add = [&operands](engine::Role role, numbers::Number number,
                                 const py::array& array) {
        operands.push_back({role, number, address(array), array.strides()});
    };
    item.formats = {number_, of_gradient, numbers::computed(number_)};
    add(engine::Role::parameter, number_, array_);
    add(engine::Role::gradient, of_gradient, gradient);
    for (std::size_t i = 0; i < companions_.size(); ++i) {
        add(companions_[i].role, numbers_[i], companions_[i].array);
        if (companions_[i].role == engine::Role::state) item.formats.state = numbers_[i];
    }
    const std::vector<std::size_t> shape = shape_of(array_);
    item.layout = engine::Layout(shape, operands, engine::tile_elements());
    for (std::size_t k = 0; k < operands.size(); ++k) {
        item.data[k] = const_cast<std::byte*>(operands[k].data) + item.layout.offset(k);
    }
    const std::size_t item_size = numbers::size_of(of_gradient);
    const bool aligned = reinterpret_cast<std::size_t>(address(gradient)) % item_size == 0;
    item.gradient_walk =
        engine::Walk(shape, array_.strides(), gradient.strides(), item_size, aligned);
    return gap;
}

}  // namespace schuss::bindings
