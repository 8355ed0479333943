#include "bindings/sums.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "bindings/arrays.hpp"
#include "bindings/gil.hpp"

namespace schuss::bindings {
namespace {

const std::string accumulated = "accumulated";  // what messages call the sums

/// When an array of the user's became a sum, and what is to be done if it changed since.
constexpr Bound since_first_gradient = {"it became the sum (overwrite_grads=True)",
                                        "drop the sums by zero_grad"};

/// Whether a sum is an array of the user's.
bool is_given(const Parameter& sum) {
    return sum.bound().since == since_first_gradient.since;
}

}  // namespace

void Sums::set_own(const std::vector<py::object>& arrays) {
    if (own_) return;
    own_ = set_of(Parameters(arrays, tree_, call_, accumulated), call_, {});
}

void Sums::take(const std::vector<py::object>& arrays, const Sums& others) {
    Parameters sums(arrays, tree_, call_, accumulated);
    for (std::size_t i = 0; i < others.parameters_.size(); ++i) {
        if (!others.has_array(i) || !is_given(others.used()->arrays[i])) continue;
        const Name name{call_, tree_.name(accumulated, i)};
        const py::object& array = others.used()->arrays[i].array().object();
        sums.replace(i, {ArrayView(array, name), name, since_first_gradient});
    }
    given_ = set_of(std::move(sums), call_, {});
    given_->accumulator.set_count(others.count());
}

void Sums::add(py::handle grads, double scale, bool overwrite, bool clear_grads,
               py::handle new_arrays) {
    const std::string call = call_ + ".accumulate";
    std::vector<py::object> leaves;
    tree_.flatten(grads, call, of_steps_.argument(), leaves, &accumulated, Tree::Gaps::allowed);
    if (count() == 0) of_rows_.drop();
    RowLeaves rows{RowSums::Addition(of_rows_, scale)};
    // The zeros of a negative multiple are negative too, so they must be in an array, unless rows
    // without a gradient rest.
    if (rows_ != nullptr) {
        const bool needs_zeros = std::signbit(scale) && !rows_->is_lazy();
        take_rows(leaves, needs_zeros, clear_grads, call, rows);
    }
    std::vector<std::size_t> given;  // the parameters whose gradients become sums
    std::unique_ptr<Set> other =
        set_for(leaves, overwrite, call, new_arrays, rows.converted, given);
    Set& set = other ? *other : *used();
    engine::Accumulator& accumulator = set.accumulator;
    for (const std::size_t i : rows.converted) {
        set.arrays[i].array().plain()[py::ellipsis()] = of_rows_.dense(i);
    }

    const Gradients::Session session(set.gradients);
    std::vector<std::size_t> resting = given;
    resting.insert(resting.end(), rows.added.begin(), rows.added.end());
    set.gradients.read(std::move(leaves), call, resting);
    set.arrays.check_shown_memory(call);
    const std::vector<py::object> held = set.gradients.hold();
    const Gradients::Views views = set.gradients.bind(call, clear_grads);
    accumulator.plan.prepare();
    engine::Plan scaled;
    for (std::size_t k = 0; scale != 1 && k < given.size(); ++k) {
        const Parameter& sum = set.arrays[given[k]];
        scaled.items.push_back(sum.item(sum.array(), {call, sum.name()}, 0));
    }
    scaled.prepare();
    rows.addition.prepare();
    for (const auto& [name, cleared] : rows.cleared) rows_in(cleared).check_in_place(name);

    if (other) {  // dropped at the end, since that may run user code
        if (own_) own_->accumulator.set_count(0);
        std::swap(given_, other);
    }
    const std::size_t elements =
        accumulator.plan.elements() + scaled.elements() + rows.addition.elements();
    run_without_gil(elements, [&]() noexcept {
        for (const std::size_t i : rows.converted) accumulator.set_has(i, true);
        accumulator.scale(scaled, scale);
        accumulator.run(scale, clear_grads);
        for (const std::size_t i : given) accumulator.set_has(i, true);
        rows.addition.run(of_rows_);
        for (const auto& [name, cleared] : rows.cleared) set_to_zero(rows_in(cleared).values());
    });
}

/// Takes the gradients that are rows out of the leaves: None is left there, or an array of the same
/// values, where the sum is an array or becomes one.
void Sums::take_rows(std::vector<py::object>& leaves, bool needs_zeros, bool clear_grads,
                     const std::string& call, RowLeaves& rows) {
    const std::vector<std::size_t>& frozen = of_steps_.frozen();
    for (std::size_t i = 0; i < leaves.size(); ++i) {
        if (leaves[i].is_none() || std::binary_search(frozen.begin(), frozen.end(), i)) continue;
        const Name name{call, of_steps_.name(i)};
        const py::object leaf = as_rows(leaves[i], name);
        if (has_rows(i) && (!leaf || needs_zeros)) {
            rows.converted.push_back(i);
            rows.addition.drop(i);
        }
        if (!leaf) continue;
        engine::RowOrder order;
        const SortedRows sorted = rows_->read(i, leaf, name, order, of_steps_.written());
        if (clear_grads) {
            check_writable(sorted.rows().values(), {call, name.argument + ".values"});
            rows.cleared.emplace_back(name, leaf);
        }
        if (has_array(i) || needs_zeros) {
            leaves[i] = sorted.dense(parameters_[i]);
        } else {
            rows.addition.add(i, sorted);
            rows.added.push_back(i);
            leaves[i] = py::none();
        }
    }
}

/// Other arrays than those in use, if the gradients need them; otherwise nullptr. Appends to
/// `given` the indices of the gradients that become sums.
std::unique_ptr<Sums::Set> Sums::set_for(const std::vector<py::object>& leaves, bool overwrite,
                                         const std::string& call, py::handle new_arrays,
                                         const std::vector<std::size_t>& converted,
                                         std::vector<std::size_t>& given) {
    const std::vector<std::size_t>& frozen = of_steps_.frozen();
    std::vector<std::size_t> copied;  // to own arrays that are not in use yet
    for (std::size_t i = 0; i < leaves.size(); ++i) {
        if (has_array(i) || leaves[i].is_none()) continue;
        if (std::binary_search(frozen.begin(), frozen.end(), i)) continue;
        if (overwrite && !std::binary_search(converted.begin(), converted.end(), i)) {
            given.push_back(i);
        } else if (!own_ || used() != own_.get()) {
            copied.push_back(i);
        }
    }
    if (!copied.empty() && !own_) set_own(new_arrays().cast<std::vector<py::object>>());
    const Set* const now = used();
    if (now == own_.get()) copied.clear();
    if (now != nullptr && given.empty() && copied.empty()) return nullptr;
    Parameters arrays = now != nullptr ? now->arrays : parameters_.alone(call);
    for (const std::size_t i : copied) arrays.replace(i, own_->arrays[i]);
    for (const std::size_t i : given) arrays.replace(i, first_gradient(i, leaves[i], call));
    std::unique_ptr<Set> set = set_of(std::move(arrays), call, given);
    set->accumulator.set_count(count());
    for (std::size_t i = 0; i < leaves.size(); ++i) set->accumulator.set_has(i, has_array(i));
    return set;
}

/// A gradient as a sum. TypeError or ValueError if it cannot be one.
Parameter Sums::first_gradient(std::size_t i, py::handle leaf, const std::string& call) const {
    const Parameter& parameter = parameters_[i];
    const Name name{call, of_steps_.name(i)};
    py::array array = as_gradient(leaf, name, parameter.array());
    // A number was converted to a new array.
    const bool is_new = !array.is(leaf) && array.owndata();
    if (is_new) array.attr("setflags")(py::arg("write") = true);
    ArrayView view(is_new ? array : leaf, name);
    check_compatible(view, name, DtypeRule::sum, parameter.array(), parameter.name());
    check_writable(view, name);
    check_shows_its_memory(view, name);
    return {std::move(view), {call, tree_.name(accumulated, i)}, since_first_gradient};
}

std::unique_ptr<Sums::Set> Sums::set_of(Parameters arrays, const std::string& call,
                                        const std::vector<std::size_t>& given) const {
    WriteSet written = written_by(arrays, parameters_, call, given);
    auto set = std::make_unique<Set>(std::move(arrays), tree_, of_steps_.argument());
    set->gradients.set_written(std::move(written));
    set->gradients.set_frozen(of_steps_.frozen());
    set->gradients.set_checks_resting(false);  // parameters that stand for sums
    return set;
}

/// The arrays that steps and further gradients write. given: the gradients that become sums.
WriteSet Sums::written_by(const Parameters& arrays, const Parameters& parameters,
                          const std::string& call, const std::vector<std::size_t>& given) const {
    std::vector<NamedArray> written;
    std::vector<std::pair<std::size_t, std::string>> names;  // after the first gradients' call
    for (std::size_t i = 0; i < arrays.size(); ++i) {
        const Parameter& sum = arrays[i];
        if (!is_given(sum) && sum.array().object().is(parameters_[i].array().object())) continue;
        std::string name = sum.name();
        if (is_given(sum)) {
            name += " (the first gradient itself; overwrite_grads=False would have copied it)";
        }
        if (std::binary_search(given.begin(), given.end(), i)) {
            names.emplace_back(written.size(), std::exchange(name, of_steps_.name(i)));
        }
        written.push_back({sum.array(), std::move(name)});
    }
    parameters.append_written(written);
    WriteSet result(call, std::move(written));
    for (auto& [index, name] : names) result.rename(index, std::move(name));
    return result;
}

void Sums::set_count(std::int64_t count) noexcept {
    if (Set* const set = used()) set->accumulator.set_count(count);
}

void Sums::read_into(Gradients& gradients, const std::string& call) const {
    check_unchanged(call);
    gradients.read(used()->arrays, used()->accumulator, of_rows_, call);
}

void Sums::check_unchanged(const std::string& call) const {
    const Set* const set = used();
    if (set == nullptr || set != given_.get()) return;
    set->arrays.check_shown_memory(call);
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
        if (has_array(i)) set->gradients.check_parameter(i, call);
    }
}

Sums::Change Sums::prepare(const Parameters* parameters,
                           const std::vector<std::size_t>& frozen) const {
    Change change;
    for (const Set* const set : sets()) {
        if (set == nullptr) continue;
        change.frozen.push_back(frozen);
        if (parameters == nullptr) continue;
        change.written.push_back(written_by(set->arrays, *parameters, call_, {}));
    }
    return change;
}

void Sums::configure(Change& change) noexcept {
    std::size_t i = 0;
    for (Set* const set : sets()) {
        if (set == nullptr) continue;
        // The previous arrays are in the change then: they are dropped with it.
        if (!change.written.empty()) set->gradients.set_written(std::move(change.written[i]));
        set->gradients.set_frozen(std::move(change.frozen[i]));
        ++i;
    }
}

void Sums::invalidate() noexcept {
    for (Set* const set : sets()) {
        if (set != nullptr) set->gradients.invalidate();
    }
}

int Sums::traverse(visitproc visit, void* arg) const {
    for (const Set* const set : sets()) {
        if (set == nullptr) continue;
        if (const int result = set->arrays.traverse(visit, arg); result != 0) return result;
        if (const int result = set->gradients.traverse(visit, arg); result != 0) return result;
    }
    return of_rows_.traverse(visit, arg);
}

}  // namespace schuss::bindings
