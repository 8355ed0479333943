#include "bindings/gradients.hpp"

#include <optional>

#include "bindings/arrays.hpp"
#include "bindings/gil.hpp"

namespace schuss::bindings {
namespace {

/// Invalidates the gradients if a check raises: the items may be laid out for arrays that changed
/// meanwhile.
struct InvalidateOnError {
    explicit InvalidateOnError(Gradients& of) : gradients(of) {}
    ~InvalidateOnError() {
        if (!valid) gradients.invalidate();
    }
    InvalidateOnError(const InvalidateOnError&) = delete;
    InvalidateOnError& operator=(const InvalidateOnError&) = delete;

    Gradients& gradients;
    bool valid = false;
};

}  // namespace

Gradients::Gradients(const Tree& tree, const Parameters& parameters, engine::Plan& plan,
                     std::string argument)
    : tree_(tree), parameters_(parameters), plan_(plan), argument_(std::move(argument)) {
    for (const Parameter& parameter : parameters) cache_.add(parameter.array());
    plan.items.resize(parameters.size());
}

void Gradients::set_written(WriteSet&& written) noexcept {
    std::swap(written_, written);
    invalidate();
}

void Gradients::invalidate() noexcept {
    for (std::size_t i = 0; i < parameters_.size(); ++i) cache_.invalidate(i);
}

void Gradients::read(py::handle structure, const std::string& call) {
    tree_.flatten(structure, call, argument_, arrays_, nullptr, Tree::Gaps::allowed);
    convert(call);
}

void Gradients::read(std::vector<py::object> leaves, const std::string& call,
                     const std::vector<std::size_t>& resting) {
    arrays_ = std::move(leaves);
    for (const std::size_t i : resting) rest(i);
    convert(call);
}

/// Converts what was read. A single gradient that is None is none at all.
void Gradients::convert(const std::string& call) {
    rest_frozen();
    for (std::size_t i = 0; i < arrays_.size(); ++i) {
        if (is_plain_array(arrays_[i])) continue;
        if (arrays_[i].is_none() && has_path(i)) {
            rest(i);
        } else {
            convert_leaf(i, {call, name(i)});
        }
    }
}

void Gradients::convert_leaf(std::size_t i, const Name& name) {
    if (rows_ != nullptr && is_rows(arrays_[i])) {
        return take_rows(i, py::object(arrays_[i]), name);
    }
    try {
        arrays_[i] = as_gradient(arrays_[i], name, parameters_[i].array());
    } catch (const py::type_error&) {
        const py::object rows = rows_ != nullptr ? rows_of_sparse(arrays_[i], name) : py::object();
        if (!rows) throw;
        take_rows(i, rows, name);
    }
}

void Gradients::take_rows(std::size_t i, py::handle rows, const Name& name) {
    has_rows_ = true;
    py::object array = rows_->take(i, rows, name, written_);
    if (array) {
        arrays_[i] = std::move(array);
    } else {
        rest(i);
    }
}

void Gradients::read(const Parameters& sums, const engine::Accumulator& accumulator,
                     const RowSums& of_rows, const std::string& call) {
    for (const Parameter& sum : sums) arrays_.push_back(sum.array().array());
    rest_frozen();
    for (std::size_t i = 0; i < arrays_.size(); ++i) {
        if (of_rows.has(i) && !rests(i)) {
            take_rows(i, of_rows.rows(i), {call, name(i)});
        } else if (!accumulator.has(i)) {
            rest(i);
        }
    }
}

void Gradients::rest(std::size_t i) {
    if (!some_rest_) rests_.assign(parameters_.size(), false);
    some_rest_ = rests_[i] = true;
    arrays_[i] = parameters_[i].array().array();
}

void Gradients::rest_frozen() {
    for (const std::size_t i : frozen_) rest(i);
}

std::vector<py::object> Gradients::hold(bool always) const {
    std::vector<py::object> held;
    const bool is_short = plan_.elements() < gil_release_threshold;
    if (!always && (is_short || !has_other_threads())) return held;
    held.reserve(arrays_.size());
    for (std::size_t i = 0; i < arrays_.size(); ++i) held.push_back(bindings::hold(array(i)));
    return held;
}

Gradients::Views Gradients::bind(const std::string& call, bool must_clear, bool reads_all) {
    bool all_at_same_address = true;
    Views views;
    std::optional<InvalidateOnError> invalidate_on_error;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
        cache_.prefetch(i, arrays_);
        if (checks_resting_ || !rests(i)) check_parameter(i, call);
        engine::Item& item = plan_.items[i];
        if (rests(i)) {
            const bool apart = rows_ != nullptr && rows_->is_apart(i);
            if (cache_.rests(i, apart)) continue;
            if (!invalidate_on_error) invalidate_on_error.emplace(*this);
            plan_.invalidate();
            item = apart ? parameters_[i].apart_item(item.group)
                         : parameters_[i].resting_item(item.group, reads_all);
            cache_.store_rest(i, apart);
            continue;
        }
        if (std::byte* const first = cache_.matches(i, array(i)); first != nullptr) {
            all_at_same_address = all_at_same_address && item.gradient() == first &&
                                  (!must_clear || array(i).writeable());
            item.set_gradient(first);
            continue;
        }
        if (!invalidate_on_error) invalidate_on_error.emplace(*this);
        plan_.invalidate();
        cache_.invalidate(i);  // until every check has passed
        const Name gradient_name{call, name(i)};
        views.emplace_back(i, ArrayView(array(i), gradient_name));
        item = parameters_[i].item(views.back().second, gradient_name, item.group);
    }
    if (!views.empty()) learn(views, call);
    const bool check_clearing = must_clear && !(views.empty() && all_at_same_address && !has_rows_);
    if (check_clearing) {
        if (!invalidate_on_error) invalidate_on_error.emplace(*this);
        check_can_be_cleared(views, call);
    }
    if (invalidate_on_error) {
        parameters_.check_shown_memory(call);
        check_nothing_changed(call);
        invalidate_on_error->valid = true;
    }
    if (has_rows_) rows_->bind(call);
    return views;
}

py::list Gradients::arrays(const std::string& call) const {
    py::list result;
    for (std::size_t i = 0; i < arrays_.size(); ++i) {
        result.append(rests(i) ? py::object(py::none())
                               : py::object(ArrayView(array(i), {call, name(i)}).plain()));
    }
    return result;
}

WriteSet Gradients::release() noexcept {
    plan_.items.clear();
    plan_.invalidate();
    cache_ = {};
    return std::exchange(written_, {});
}

void Gradients::check_parameter(std::size_t i, const std::string& call) const {
    const Parameter& parameter = parameters_[i];
    if (!cache_.parameter_is_unchanged(i)) parameter.refuse_change(call);
    if (parameters_.some_are_views() && !parameter.array().is_in_place()) {
        parameter.refuse_change(call);
    }
    if (parameters_.have_copies()) parameter.check_copy(call);
}

/// Stores the metadata of gradients that differ from the step before. ValueError if one of them
/// shares memory with a written array.
void Gradients::learn(const Views& views, const std::string& call) {
    std::vector<NamedArray> among_written;
    std::vector<AddressRange> free_ranges;
    for (const auto& [i, view] : views) {
        const AddressRange bounds = bounds_of(view);
        free_ranges.push_back(written_.free_range_around(bounds));
        if (!free_ranges.back().is_empty()) continue;
        among_written.push_back({view, name(i)});
        free_ranges.back() = bounds;  // only its own memory is known to be free
    }
    if (!among_written.empty()) written_.check_disjoint_from(call, std::move(among_written));
    for (std::size_t k = 0; k < views.size(); ++k) {
        cache_.store(views[k].first, views[k].second, free_ranges[k]);
    }
}

/// ValueError unless each gradient can be written and shares no memory with another.
void Gradients::check_can_be_cleared(const Views& views, const std::string& call) const {
    std::vector<NamedArray> named;
    auto next = views.begin();
    for (std::size_t i = 0; i < arrays_.size(); ++i) {
        if (rests(i)) continue;
        const Name gradient_name{call, name(i)};
        const bool has_view = next != views.end() && next->first == i;
        const ArrayView view = has_view ? (next++)->second : ArrayView(array(i), gradient_name);
        check_writable(view, gradient_name);
        named.push_back({view, gradient_name.argument});
    }
    if (has_rows_) rows_->append_cleared(named, call);
    check_disjoint(call, named);
}

/// ValueError if a parameter or gradient changed after its check: checks may run Python code.
void Gradients::check_nothing_changed(const std::string& call) const {
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
        if (checks_resting_ || !rests(i)) check_parameter(i, call);
        if (rests(i) || cache_.at_address(i, array(i), plan_.items[i].gradient())) continue;
        throw py::value_error(call + ": " + name(i) +
                              " was changed while it was read, expected it to stay as it is");
    }
}

}  // namespace schuss::bindings
