#include "bindings/optimizer.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <utility>

#include "bindings/formula.hpp"
#include "bindings/gil.hpp"

namespace schuss::bindings {
namespace {

/// Calls a function with the learning rates as an array, and with their number.
template <class Function>
auto with_lrs(py::handle lrs, std::size_t groups, const Function& function) {
    if (PyFloat_Check(lrs.ptr()) != 0) {
        const double lr = PyFloat_AS_DOUBLE(lrs.ptr());
        return function(&lr, 1);
    }
    std::vector<double> each;
    for (const py::handle lr : py::tuple(py::reinterpret_borrow<py::object>(lrs))) {
        each.push_back(lr.cast<double>());
    }
    if (each.size() != groups) throw py::value_error("expected a learning rate for each group");
    return function(each.data(), each.size());
}

}  // namespace

Optimizer::Optimizer(const std::string& call, py::handle parameters, const std::string& step,
                     const std::string& params, std::string grads, bool round_at_random,
                     const std::optional<std::vector<std::uint64_t>>& first,
                     const std::string& rows)
    : call_(call),
      step_call_(call + "." + step),
      params_(params),
      tree_(Tree::kept(parameters, call, params)),
      parameters_(tree_.leaves(), tree_, call, params, round_at_random),
      gradients_(tree_, parameters_, step_.plan, std::move(grads)),
      sums_(call, tree_, parameters_, gradients_) {
    gradients_.set_written(write_set(parameters_));
    if (rows != "none") {
        rows_.emplace(rows == "lazy" ? RowMode::lazy : RowMode::exact, parameters_, step_.rows);
        gradients_.set_rows(*rows_);
        sums_.set_rows(*rows_);
    }
    if (!first) return;
    if (first->size() != parameters_.size()) {
        throw py::value_error(call + ": first has " + std::to_string(first->size()) +
                              " numbers, expected one for each of the " +
                              std::to_string(parameters_.size()) + " parameters");
    }
    step_.plan.set_first(*first);
}

py::object Optimizer::tree() {
    if (!tree_object_) tree_object_ = py::cast(tree_);
    return tree_object_;
}

py::list Optimizer::users_arrays() const {
    py::list result;
    for (const Parameter& parameter : parameters_) result.append(parameter.array().array());
    return result;
}

py::list Optimizer::users_copies() const {
    py::list result;
    for (const Parameter& parameter : parameters_) {
        if (const ArrayView* const copy = parameter.copy()) result.append(copy->array());
    }
    return result;
}

py::list Optimizer::arrays() const {
    py::list result;
    for (const Parameter& parameter : parameters_) {
        if (!parameter.array().is_in_place()) parameter.refuse_change(call_);
        result.append(parameter.array().plain());
    }
    return result;
}

py::list Optimizer::copies() const {
    py::list result;
    for (const Parameter& parameter : parameters_) {
        parameter.check_copy(call_);
        if (const ArrayView* const copy = parameter.copy()) result.append(copy->plain());
    }
    return result;
}

py::list Optimizer::values() const {
    py::list result;
    for (const Parameter& parameter : parameters_) {
        if (!parameter.array().is_in_place()) parameter.refuse_change(call_);
        result.append(parameter.values());
    }
    return result;
}

void Optimizer::hold_groups(py::object groups) {
    tree_.hold_groups(std::move(groups), call_);
}

py::list Optimizer::hold_copies(py::handle copies, const std::string& call) {
    copies_ = tree_.hold(copies, call, "copies");
    py::list result;
    for (const py::object& leaf : copies_->leaves) result.append(leaf);
    return result;
}

void Optimizer::configure(const std::vector<engine::Formula>& formulas,
                          const std::vector<std::size_t>& members,
                          const engine::StepOptions& options, const AuxArrays* arrays,
                          const std::vector<std::size_t>& frozen) {
    if (arrays != nullptr) flush();  // while the rows are in the arrays that they missed steps in
    std::vector<engine::Group> groups;
    const std::vector<std::int64_t> rested = this->rested();
    for (const engine::Formula& formula : formulas) {
        const std::size_t i = groups.size();
        groups.push_back({formula, {}, i < rested.size() ? rested[i] : 0});
    }
    std::vector<std::size_t> resting;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
        if (std::find(frozen.begin(), frozen.end(), members.at(i)) != frozen.end()) {
            resting.push_back(i);
        }
    }
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
        const auto dtype = static_cast<std::size_t>(parameters_[i].compute_dtype());
        groups.at(members.at(i)).dtypes[dtype] = true;
        parameters_[i].check_limits(formulas.at(members.at(i)), options.clip_value, call_);
    }
    std::vector<engine::Update> updates;
    refuse_misfit(engine::compute_updates(groups, steps() + 1, options.clip_value, updates), call_,
                  groups.size() > 1);
    Parameters parameters;
    WriteSet written;
    if (arrays != nullptr) {
        parameters = parameters_.with_aux_arrays(*arrays, formulas.at(0), tree_, call_);
        written = write_set(parameters);
    }
    Sums::Change of_sums = sums_.prepare(arrays != nullptr ? &parameters : nullptr, resting);
    // Nothing below fails. The old arrays are dropped at the end, since that may run user code.
    if (arrays != nullptr) {
        if (!parameters_.have_these_averages(arrays->averages)) step_.average().reset();
        std::swap(parameters_, parameters);
        gradients_.set_written(std::move(written));
        if (rows_) rows_->forget_layouts();
        step_.set_has_average(parameters_.have_averages());
    }
    for (std::size_t i = 0; i < parameters_.size(); ++i) step_.plan.items[i].group = members[i];
    gradients_.set_frozen(std::move(resting));
    sums_.configure(of_sums);
    if (options.clear_grads && !step_.options().clear_grads) {
        gradients_.invalidate();
        sums_.invalidate();
    }
    if (options.track_norms != step_.options().track_norms) gradients_.invalidate();
    if (rows_) rows_->set_measured(options.track_norms);
    step_.configure(std::move(groups), std::move(updates), options);
}

PyBusyGuard Optimizer::busy(py::object optimizer, std::string call, bool changes) {
    auto& self = optimizer.cast<Optimizer&>();
    return {std::move(optimizer), self.busy_, std::move(call), self.call_, changes};
}

py::object Optimizer::last() const {
    const auto& last = step_.last();
    if (!last) return py::none();
    return py::make_tuple(last->grad_norm, last->clipped, last->skipped(), last->update_norm,
                          last->param_norm);
}

py::object Optimizer::last_lrs() const {
    const std::vector<double>* const lrs = step_.last_lrs();
    return lrs == nullptr ? py::none() : py::cast(*lrs);
}

void Optimizer::check_lrs(py::handle lrs) const {
    const std::size_t groups = step_.groups().size();
    refuse_misfit(with_lrs(lrs, groups,
                           [this](const double* values, std::size_t count) {
                               return step_.check_lrs(values, count);
                           }),
                  call_, groups > 1);
}

void Optimizer::check_source(py::handle grads) const {
    require_source(grads, step_call_);
}

void Optimizer::require_source(py::handle grads, const std::string& call) const {
    if (!grads.is_none()) {
        if (accumulated() == 0) return;
        throw py::value_error(call + ": " + gradients_.argument() +
                              " are given while others are accumulated, expected only one of them");
    }
    if (accumulated() > 0) return;
    throw py::value_error(call + ": there are no gradients, expected " + gradients_.argument() +
                          ", or some accumulated");
}

void Optimizer::step(py::handle grads, py::handle lrs, const StepCall& call) {
    const bool is_in_pieces = call.pieces != nullptr;
    // A child that is forked between two pieces must refuse the optimizer.
    const BusyGuard guard(busy_, step_call_, call_, is_in_pieces);
    require_source(grads, step_call_);
    if (call.expected_step != 0 && call.expected_step != steps() + 1) {
        throw_busy(step_call_, call_);
    }
    check_count(std::max(steps(), skipped()), step_call_);
    const std::uint64_t version = call.lr_version.value_or(step_.lr_version());
    const std::size_t groups = step_.groups().size();
    refuse_misfit(with_lrs(lrs, groups,
                           [&](const double* values, std::size_t count) {
                               return step_.set_lrs(values, count, version);
                           }),
                  step_call_, groups > 1);
    step_.plan.wake_threads();
    const Gradients::Session session(gradients_);
    read_gradients(grads, step_call_);
    const std::vector<py::object> held = gradients_.hold(is_in_pieces);
    const engine::StepOptions& options = step_.options();
    const Gradients::Views views =
        gradients_.bind(step_call_, options.clear_grads, options.track_norms);
    make_step(call, grads.is_none());
    if (grads.is_none()) sums_.drop_given();
}

/// Reads the gradients of a session, or (None) the accumulated ones.
void Optimizer::read_gradients(py::handle grads, const std::string& call) {
    // The conversions come first, since they may run user code. The checks after them would not
    // hold if user code ran again.
    if (grads.is_none()) {
        sums_.read_into(gradients_, call);
    } else {
        gradients_.read(grads, call);
    }
    check_params(call);
}

void Optimizer::check_params(const std::string& call) const {
    tree_.check_unchanged(call);
    if (copies_) tree_.check_unchanged(*copies_, call);
    parameters_.check_shown_memory(call);
}

void Optimizer::make_step(const StepCall& call, bool uses_sums) {
    step_.prepare(call.skip_nonfinite ? engine::Nonfinite::skip : step_.options().nonfinite);
    engine::Outcome outcome;
    if (call.pieces != nullptr) {
        outcome = run_pieces(call, uses_sums);
    } else {
        const bool has_rows = gradients_.has_rows();
        const std::size_t of_rows = has_rows ? rows_->elements() : 0;
        run_without_gil(step_.plan.elements() + of_rows, [&]() noexcept {
            outcome = step_.run(call.scale, call.statistics);
            if (step_.options().clear_grads && has_rows && !outcome.raises) {
                rows_->clear_values();
            }
            // A fork may follow the run at once: the child must not use the sums again.
            if (uses_sums && !outcome.raises) sums_.forget();
        });
    }
    if (outcome.raises) {
        const std::string message = step_call_ + ": " + gradients_.name(*outcome.first_nonfinite) +
                                    " has a NaN or an infinity, expected finite numbers";
        PyErr_SetString(PyExc_FloatingPointError, message.c_str());
        throw py::error_already_set();
    }
    step_.record(outcome);
}

void Optimizer::take_sums(const std::vector<py::object>& arrays, const Optimizer& other) {
    sums_.take(arrays, other.sums_);
}

void Optimizer::accumulate(py::handle grads, double scale, bool overwrite_grads,
                           py::handle new_sums) {
    const std::string call = call_ + ".accumulate";
    const BusyGuard guard(busy_, call, call_);
    check_count(accumulated(), call);
    sums_.add(grads, scale, overwrite_grads, step_.options().clear_grads, new_sums);
}

void Optimizer::set_accumulated(std::int64_t count) {
    count = in_range(count, "accumulated");
    sums_.drop_rows();
    sums_.set_count(count);
}

void Optimizer::clear_accumulated() {
    sums_.forget();
    sums_.drop_given();
}

std::vector<std::size_t> Optimizer::without_sum() const {
    std::vector<std::size_t> result;
    for (std::size_t i = 0; accumulated() > 0 && i < parameters_.size(); ++i) {
        if (!sums_.has(i)) result.push_back(i);
    }
    return result;
}

void Optimizer::set_without_sum(const std::vector<std::size_t>& parameters) {
    for (const std::size_t i : parameters) sums_.set_has(i, false);
}

py::list Optimizer::sums() const {
    sums_.check_unchanged(call_);
    py::list result;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
        result.append(sums_.has(i) ? py::object(sums_.array(i)) : py::none());
    }
    return result;
}

std::vector<std::int64_t> Optimizer::rested() const {
    std::vector<std::int64_t> result;
    for (const engine::Group& group : step_.groups()) result.push_back(group.rested);
    return result;
}

void Optimizer::set_rested(const std::vector<std::int64_t>& steps) {
    for (std::size_t i = 0; i < steps.size(); ++i) {
        step_.set_rested(i, in_range(steps[i], "rested"));
    }
}

py::object Optimizer::average() const {
    if (!parameters_.have_averages()) return py::none();
    if (step_.options().average_from_zero) return corrected_average();
    py::list result;
    for (const Parameter& parameter : parameters_) result.append(parameter.average()->plain());
    return tree_.unflatten(result);
}

py::object Optimizer::corrected_average() const {
    const BusyGuard guard(busy_, call_ + ".average", call_);
    py::list result;
    if (step_.average().is_empty()) return tree_.unflatten(values());
    for (const Parameter& parameter : parameters_) {
        // A copy in the order of memory has no gaps.
        const py::array copy = parameter.average()->plain().attr("copy")("K");
        auto* const elements = static_cast<std::byte*>(const_cast<void*>(copy.data()));
        const numbers::DType dtype = parameter.compute_dtype();  // of the components, if complex
        const auto count = static_cast<std::size_t>(copy.nbytes()) / numbers::size_of(dtype);
        step_.average().correct_bias(dtype, elements, count);
        result.append(copy);
    }
    return tree_.unflatten(result);
}

void Optimizer::check_copies(const std::string& call) const {
    if (copies_) tree_.check_unchanged(*copies_, call);
    for (const Parameter& parameter : parameters_) {
        parameter.check_shows_its_memory(call);
        parameter.check_copy(call);
    }
}

int Optimizer::traverse(visitproc visit, void* arg) const {
    Py_VISIT(tree_object_.ptr());
    if (const int result = tree_.traverse(visit, arg); result != 0) return result;
    if (copies_) {
        if (const int result = copies_->traverse(visit, arg); result != 0) return result;
    }
    if (const int result = parameters_.traverse(visit, arg); result != 0) return result;
    if (const int result = gradients_.traverse(visit, arg); result != 0) return result;
    return sums_.traverse(visit, arg);
}

void Optimizer::release() {
    // Dropped at the end, since that may run user code.
    const auto released =
        std::make_tuple(gradients_.release(), tree_.release(), std::exchange(tree_object_, {}),
                        std::exchange(copies_, std::nullopt),
                        std::exchange(parameters_, Parameters()), sums_.release());
    step_.rows.clear();
}

std::int64_t Optimizer::in_range(std::int64_t count, const std::string& name) const {
    if (count >= 0 && count <= rules::max_steps) return count;
    throw py::value_error(call_ + ": " + name + " is out of range");
}

void Optimizer::check_count(std::int64_t count, const std::string& call) const {
    if (count < rules::max_steps) return;
    throw py::value_error(call + ": " + std::to_string(rules::max_steps) +
                          " were counted, which is the largest count");
}

WriteSet Optimizer::write_set(const Parameters& parameters) const {
    std::vector<NamedArray> arrays;
    parameters.append_written(arrays);
    return {call_, std::move(arrays)};
}

}  // namespace schuss::bindings
