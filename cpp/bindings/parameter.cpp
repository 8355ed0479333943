#include "bindings/parameter.hpp"

#include <algorithm>
#include <utility>

#include "sweep/dispatch.hpp"

namespace schuss::bindings {
namespace {

std::string text(py::handle object) {
    return py::repr(object).cast<std::string>();
}

DtypeRule dtype_rule(engine::Role role, DtypeRule of_states) {
    switch (role) {
        case engine::Role::state:
            return of_states;
        case engine::Role::copy:
            return DtypeRule::half;
        default:
            return DtypeRule::compute;
    }
}

/// An array that belongs to a parameter. If it belonged to it before, the same view is used again.
Parameter::AuxArray aux_array(const Parameter& parameter, engine::Role role, py::handle array,
                              const Name& name) {
    for (const Parameter::AuxArray& known : parameter.aux_arrays()) {
        if (known.array.object().is(array)) return {role, known.array, name.argument};
    }
    ArrayView view(array, name);
    check_shows_its_memory(view, name);
    return {role, std::move(view), name.argument};
}

}  // namespace

Parameter::Parameter(ArrayView array, const Name& name, const Bound& bound)
    : name_(name.argument),
      bound_(bound),
      array_(std::move(array)),
      type_(element_type_of(array_, name)) {
    check_writable(array_, name);
}

py::array Parameter::values() const {
    const py::array values = array_.plain().attr("copy")();
    const ArrayView* const master = this->master();
    if (master == nullptr) {
        const char* const dtype = numbers::dtype_name(compute_dtype());
        return is_complex() ? values : py::array(values.attr("astype")(dtype));
    }
    const py::array low = master->plain().attr("copy")();
    py::array result(py::dtype("f4"), array_.shape());
    const auto kind = static_cast<std::size_t>(master_kind(*master));
    sweep::level().join[kind](values.data(), low.data(), static_cast<float*>(result.mutable_data()),
                              array_.size());
    return result;
}

const ArrayView* Parameter::find(engine::Role role) const {
    for (const AuxArray& aux : aux_arrays_) {
        if (aux.role == role) return &aux.array;
    }
    return nullptr;
}

ElementType Parameter::check_aux_array(const AuxArray& aux, const Name& name,
                                       DtypeRule of_states) const {
    if (aux.role == engine::Role::master) {
        check_master(aux.array, name, array_, name_);
        return type_;
    }
    if (aux.by_row) return check_row_state(aux.array, name, array_, name_);
    const DtypeRule rule =
        aux.nonnegative && is_complex() ? DtypeRule::nonnegative : dtype_rule(aux.role, of_states);
    const bool may_have_blocks =
        aux.role == engine::Role::state && of_states == DtypeRule::stochastic;
    if (may_have_blocks && has_blocks(aux.array)) {
        return check_blocks(aux.array, name, aux.nonnegative, array_, name_);
    }
    return check_compatible(aux.array, name, rule, array_, name_);
}

void Parameter::set_aux_arrays(std::vector<AuxArray> arrays, const std::string& call,
                               DtypeRule of_states) {
    std::vector<ElementType> types;
    types.reserve(arrays.size());
    const AuxArray *first_nonnegative = nullptr, *first_state = nullptr;
    for (const AuxArray& aux : arrays) {
        const Name name{call, aux.name};
        types.push_back(check_aux_array(aux, name, of_states));
        if (aux.role != engine::Role::state) continue;
        if (first_state == nullptr) first_state = &aux;
        if (types.back().dtype != types.front().dtype) {
            throw py::type_error(name.text() + " has another number format than " +
                                 first_state->name + ", expected the same for all states of " +
                                 name_);
        }
        if (!aux.nonnegative || !is_complex()) continue;
        if (first_nonnegative == nullptr) first_nonnegative = &aux;
        check_like(aux.array, name, first_nonnegative->array, first_nonnegative->name);
    }
    for (const AuxArray& aux : arrays) check_writable(aux.array, {call, aux.name});
    for (const AuxArray& aux : arrays) {
        if (!aux.by_row) continue;
        row_strides_ = aux.array.strides();
        row_strides_.resize(array_.ndim());
    }
    aux_arrays_ = std::move(arrays);
    aux_types_ = std::move(types);
}

void Parameter::check_limits(const engine::Formula& formula, double clip_value,
                             const std::string& call) const {
    const engine::Bounds& bounds = formula.bounds();
    if (type_.dtype == numbers::DType::float16) {
        constexpr double largest = 65504;
        const std::optional<double> bound = bounds.first_beyond(largest);
        if (!bound) return;
        throw py::value_error(call + ": bounds has " + text(py::float_(*bound)) + " where " +
                              name_ + " is float16, expected a number from -65504 to 65504");
    }
    if (!is_complex()) return;
    const std::string why =
        " where " + name_ + " is complex, expected None: complex numbers have no order";
    if (clip_value != engine::no_limit) {
        throw py::value_error(call + ": clip_value is " + text(py::float_(clip_value)) + why);
    }
    if (bounds.exist()) throw py::value_error(call + ": bounds are given" + why);
}

void Parameter::append_written(std::vector<NamedArray>& out) const {
    out.push_back({array_, name_});
    for (const AuxArray& aux : aux_arrays_) out.push_back({aux.array, aux.name});
}

void Parameter::check_copy(const std::string& call) const {
    const ArrayView* const copy = this->copy();
    if (copy == nullptr || (copy->has_its_memory() && copy->has_its_dtype())) return;
    throw py::value_error(call + ": the copy of " + name_ +
                          " has become read-only, was resized or seen as another dtype, expected "
                          "it as it was given");
}

void Parameter::check_shows_its_memory(const std::string& call) const {
    const auto check = [&](const ArrayView& array, const std::string& name) {
        if (array.shows_its_memory({call, name})) return;
        throw py::value_error(call + ": " + name + " was given other memory since " + bound_.since +
                              ", expected the same memory, shape, strides and dtype (write new "
                              "values into it, or " +
                              bound_.remedy + ")");
    };
    check(array_, name_);
    if (const ArrayView* const copy = this->copy()) check(*copy, "the copy of " + name_);
}

void Parameter::refuse_change(const std::string& call) const {
    const bool is_default = bound_.since == Bound{}.since;
    const std::string remedy = is_default ? "" : std::string(" (or ") + bound_.remedy + ")";
    if (!array_.array().writeable()) {
        throw py::value_error(call + ": " + name_ + " is read-only, expected a writeable array" +
                              remedy);
    }
    throw py::value_error(call + ": " + name_ +
                          " was resized, reshaped or seen as another dtype since " + bound_.since +
                          ", expected the same memory, shape, strides and dtype" + remedy);
}

engine::Item Parameter::item(const ArrayView& gradient, const Name& name, std::size_t group) const {
    const ElementType gradient_type =
        check_compatible(gradient, name, DtypeRule::convertible, array_, name_);
    return {group, array_.shape(),
            operands({engine::Role::gradient, gradient_type.dtype, gradient.data(),
                      gradient.strides().data(), gradient_type.components}),
            row_states()};
}

bool Parameter::lay_out(engine::RowTables& tables, std::size_t index) const {
    // The gradient of a row is contiguous, in the compute dtype.
    std::vector<std::ptrdiff_t> strides(array_.ndim());
    auto stride = static_cast<std::ptrdiff_t>(numbers::size_of(compute_dtype())) * type_.components;
    for (std::size_t axis = strides.size(); axis-- > 0;) {
        strides[axis] = stride;
        stride *= static_cast<std::ptrdiff_t>(array_.shape()[axis]);
    }
    return tables.lay_out(index, array_.shape(),
                          operands({engine::Role::gradient, compute_dtype(), array_.data(),
                                    strides.data(), type_.components}),
                          row_states());
}

std::vector<engine::Operand> Parameter::operands(const engine::Operand& gradient) const {
    std::vector<engine::Operand> operands;
    const auto add = [&operands](engine::Role role, ElementType type, const ArrayView& array) {
        operands.push_back(
            {role, type.dtype, array.data(), array.strides().data(), type.components});
    };
    add(engine::Role::parameter, type_, array_);
    operands[0].at_random =
        rounds_at_random_ && type_.dtype == numbers::DType::bfloat16 && master() == nullptr;
    operands.push_back(gradient);
    const bool has_rows = row_states().exist();
    for (std::size_t i = 0; i < aux_arrays_.size(); ++i) {
        if (aux_arrays_[i].by_row && has_rows) continue;
        add(aux_arrays_[i].role, aux_types_[i], aux_arrays_[i].array);
        if (aux_arrays_[i].by_row) operands.back().strides = row_strides_.data();
        if (aux_arrays_[i].role == engine::Role::master) {
            operands.back().master = master_kind(aux_arrays_[i].array);
        }
    }
    return operands;
}

/// The state that has a number for each row, if there is one and rows have several elements: it is
/// not among the operands.
engine::RowStates Parameter::row_states() const {
    for (const AuxArray& aux : aux_arrays_) {
        const std::size_t rows = aux.array.size();
        if (!aux.by_row || rows == 0 || array_.size() <= rows) continue;
        return {aux.array.data(), array_.size() / rows};
    }
    return {};
}

engine::Item Parameter::resting_item(std::size_t group, bool is_read) const {
    std::vector<engine::Operand> operands;
    const ArrayView* const average = this->average();
    if (average != nullptr || is_read) {
        const ArrayView& updated = average != nullptr ? *average : array_;
        operands = {{engine::Role::parameter, average != nullptr ? compute_dtype() : type_.dtype,
                     updated.data(), updated.strides().data(), type_.components},
                    {engine::Role::gradient, type_.dtype, array_.data(), array_.strides().data(),
                     type_.components}};
        if (const ArrayView* const master = this->master()) {
            operands.push_back({engine::Role::master, type_.dtype, master->data(),
                                master->strides().data(), 1, master_kind(*master)});
        }
    }
    return engine::Item::resting(group, array_.shape(), type_.components, operands);
}

int Parameter::traverse(visitproc visit, void* arg) const {
    if (const int result = array_.traverse(visit, arg); result != 0) return result;
    for (const AuxArray& aux : aux_arrays_) {
        if (const int result = aux.array.traverse(visit, arg); result != 0) return result;
    }
    return 0;
}

const AuxArrays::List& AuxArrays::state(std::string_view name) const {
    for (const auto& [own_name, arrays] : states) {
        if (own_name == name) return arrays;
    }
    throw py::key_error(std::string(name));
}

int AuxArrays::traverse(visitproc visit, void* arg) const {
    const auto traverse_list = [&](const List& arrays) {
        for (const py::object& array : arrays) Py_VISIT(array.ptr());
        return 0;
    };
    for (const auto& [name, arrays] : states) {
        if (const int result = traverse_list(arrays); result != 0) return result;
    }
    for (const std::optional<List>* arrays : {&averages, &copies, &masters}) {
        if (!*arrays) continue;
        if (const int result = traverse_list(**arrays); result != 0) return result;
    }
    return 0;
}

Parameters::Parameters(const std::vector<py::object>& leaves, const Tree& tree,
                       const std::string& call, const std::string& argument, bool round_at_random) {
    parameters_.reserve(leaves.size());
    for (std::size_t i = 0; i < leaves.size(); ++i) {
        const Name name{call, tree.name(argument, i)};
        parameters_.emplace_back(ArrayView(leaves[i], name), name);
        if (round_at_random) parameters_.back().round_at_random();
    }
    for (const Parameter& parameter : parameters_) {
        bindings::check_shows_its_memory(parameter.array(), {call, parameter.name()});
    }
    count_kinds();
}

void Parameters::count_kinds() {
    all_are_arrays_ = true;
    some_are_views_ = false;
    for (const Parameter& parameter : parameters_) {
        const ArrayView* const copy = parameter.copy();
        all_are_arrays_ = all_are_arrays_ && parameter.array().is_own_array() &&
                          (copy == nullptr || copy->is_own_array());
        some_are_views_ = some_are_views_ || parameter.array().is_view();
    }
}

Parameters Parameters::alone(const std::string& call) const {
    Parameters result;
    result.parameters_ = parameters_;
    for (Parameter& parameter : result.parameters_) parameter.set_aux_arrays({}, call);
    result.count_kinds();
    return result;
}

void Parameters::replace(std::size_t i, Parameter parameter) {
    parameters_[i] = std::move(parameter);
    count_kinds();
}

bool Parameters::have_these_averages(const std::optional<AuxArrays::List>& averages) const {
    if (!averages || !have_averages_) return averages.has_value() == have_averages_;
    for (std::size_t i = 0; i < size(); ++i) {
        if (!parameters_[i].average()->object().is(averages->at(i))) return false;
    }
    return true;
}

Parameters Parameters::with_aux_arrays(const AuxArrays& arrays, const engine::Formula& formula,
                                       const Tree& tree, const std::string& call) const {
    const std::vector<rules::State>& states = formula.rule().states;
    Parameters result = *this;
    result.have_averages_ = arrays.averages.has_value();
    result.have_copies_ = arrays.copies.has_value();
    for (std::size_t i = 0; i < size(); ++i) {
        Parameter& parameter = result.parameters_[i];
        std::vector<Parameter::AuxArray> own;
        own.reserve(states.size() + 1 + result.have_averages_ + result.have_copies_);
        const auto add = [&](engine::Role role, const AuxArrays::List& list,
                             const std::string& name) {
            const Name own_name{call, tree.name(name, i)};
            own.push_back(aux_array(parameter, role, list.at(i), own_name));
        };
        for (const rules::State& state : states) {
            add(engine::Role::state, arrays.state(state.name),
                "state['" + std::string(state.name) + "']");
            own.back().nonnegative = state.nonnegative;
            own.back().by_row = formula.is_row_wise();
        }
        if (arrays.masters && !arrays.masters->at(i).is_none()) {
            add(engine::Role::master, *arrays.masters, "master");
        }
        if (arrays.averages) add(engine::Role::average, *arrays.averages, "average");
        if (arrays.copies) add(engine::Role::copy, *arrays.copies, "copies");
        parameter.set_aux_arrays(std::move(own), call);
    }
    result.count_kinds();
    return result;
}

void Parameters::append_written(std::vector<NamedArray>& out) const {
    std::size_t arrays = 0;
    for (const Parameter& parameter : parameters_) arrays += 1 + parameter.aux_arrays().size();
    out.reserve(out.size() + arrays);
    for (const Parameter& parameter : parameters_) parameter.append_written(out);
}

void Parameters::check_shown_memory(const std::string& call) const {
    if (all_are_arrays_) return;
    for (const Parameter& parameter : parameters_) parameter.check_shows_its_memory(call);
}

int Parameters::traverse(visitproc visit, void* arg) const {
    for (const Parameter& parameter : parameters_) {
        if (const int result = parameter.traverse(visit, arg); result != 0) return result;
    }
    return 0;
}

}  // namespace schuss::bindings
