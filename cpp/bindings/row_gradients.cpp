#include "bindings/row_gradients.hpp"

#include <algorithm>
#include <utility>

namespace schuss::bindings {

RowGradients::RowGradients(RowMode mode, const Parameters& parameters, engine::RowTables& tables)
    : mode_(mode),
      parameters_(parameters),
      tables_(tables),
      orders_(parameters.size()),
      unfit_(parameters.size()) {
    tables.set_lazy(mode == RowMode::lazy);
}

void RowGradients::check_can_rest(std::size_t parameter, const Name& name) {
    if (mode_ == RowMode::exact || parameters_[parameter].array().size() == 0) return;
    const std::string remedy = " (rows='exact' steps the whole array then)";
    if (measured_) {
        throw py::value_error(name.text() +
                              " is a Rows where track_norms is True and rows is 'lazy', expected "
                              "False" +
                              remedy);
    }
    if (can_step(parameter)) return;
    throw py::value_error(name.text() + " is a Rows where " + parameters_[parameter].name() +
                          " or an array that belongs to it has gaps or another memory order, or "
                          "8-bit state whose blocks end within a row, and rows is 'lazy', expected "
                          "C-contiguous arrays and rows of whole blocks" +
                          remedy);
}

py::object RowGradients::take(std::size_t parameter, py::handle rows, const Name& name,
                              const WriteSet& written) {
    SortedRows sorted = read(parameter, rows, name, order(parameter), written);
    const bool by_rows = !measured_ && can_step(parameter);
    py::object array;
    if (!by_rows) array = sorted.dense(parameters_[parameter]);
    taken_.push_back({parameter, by_rows, std::move(sorted)});
    return array;
}

engine::RowOrder& RowGradients::order(std::size_t parameter) {
    std::unique_ptr<engine::RowOrder>& order = orders_[parameter];
    if (!order) order = std::make_unique<engine::RowOrder>();
    return *order;
}

SortedRows RowGradients::read(std::size_t parameter, py::handle rows, const Name& name,
                              engine::RowOrder& order, const WriteSet& written) {
    SortedRows sorted(rows, name, parameters_[parameter], order);
    check_can_rest(parameter, name);
    const ArrayView& values = sorted.rows().values();
    if (written.free_range_around(bounds_of(values)).is_empty()) {
        written.check_disjoint_from(name.call, {{values, name.argument + ".values"}});
    }
    return sorted;
}

bool RowGradients::has(std::size_t parameter) const {
    const auto found = std::lower_bound(
        taken_.begin(), taken_.end(), parameter,
        [](const Taken& taken, std::size_t sought) { return taken.parameter < sought; });
    return found != taken_.end() && found->parameter == parameter && found->by_rows;
}

bool RowGradients::can_step(std::size_t parameter) {
    if (tables_.has(parameter)) return true;
    if (unfit_[parameter]) return false;
    unfit_[parameter] = !parameters_[parameter].lay_out(tables_, parameter);
    return !unfit_[parameter];
}

void RowGradients::bind(const std::string& call) {
    for (const Taken& taken : taken_) {
        taken.rows.rows().check_in_place({call, taken.rows.name()});
        if (taken.by_rows) tables_.set_gradient(taken.parameter, taken.rows.gradient());
    }
}

std::size_t RowGradients::elements() const {
    std::size_t elements = 0;
    for (const Taken& taken : taken_) elements += taken.rows.elements();
    return elements;
}

void RowGradients::append_cleared(std::vector<NamedArray>& out, const std::string& call) const {
    for (const Taken& taken : taken_) {
        const Name name{call, taken.rows.name() + ".values"};
        const ArrayView& values = taken.rows.rows().values();
        check_writable(values, name);
        out.push_back({values, name.argument});
    }
}

void RowGradients::clear_values() const noexcept {
    for (const Taken& taken : taken_) set_to_zero(taken.rows.rows().values());
}

void RowGradients::drop() noexcept {
    tables_.clear_gradients();
    const std::vector<Taken> dropped = std::exchange(taken_, {});
}

void RowGradients::forget_layouts() noexcept {
    tables_.clear();
    std::fill(unfit_.begin(), unfit_.end(), false);
}

}  // namespace schuss::bindings
