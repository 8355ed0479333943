// A step as Python calls it: with arrays that a Plan holds, or with arrays given each time.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/array_cache.hpp"
#include "bindings/arrays.hpp"
#include "bindings/gil.hpp"
#include "bindings/overlap.hpp"
#include "bindings/parameter.hpp"
#include "bindings/register.hpp"
#include "bindings/tree.hpp"
#include "engine/plan.hpp"
#include "rules/registry.hpp"
#include "runtime/fork.hpp"
#include "sweep/dispatch.hpp"

namespace schuss::bindings {
namespace {

/// A rule with the values of its hyperparameters. Their ranges are Python's to check.
class Formula {
  public:
    Formula(const std::string& rule, const std::string& decay, const py::dict& values)
        : index_(rules::find_rule(rule)), decay_(decay_of(decay)) {
        weight_decay_ = values["weight_decay"].cast<double>();
        for (const auto name : entry().hyperparameters) {
            values_.push_back(values[name.data()].cast<double>());
        }
    }

    /// A rule without weight decay, that has but one hyperparameter: the rate.
    explicit Formula(const std::string& rule)
        : index_(rules::find_rule(rule)),
          decay_(rules::Decay::none),
          weight_decay_(0),
          values_{0} {}

    const rules::RuleInfo& entry() const { return rules::registry()[index_]; }
    void set_rate(double rate) { values_[0] = rate; }

    /// What step t needs, except for the scale of the gradients. Uses no Python.
    engine::Update update(std::int64_t t, double limit) const noexcept {
        const rules::Coefficients values = rules::coefficients(
            entry(), values_.data(), weight_decay_, static_cast<double>(t), limit);
        return {&sweep::level().rules[index_], decay_,
                engine::Coefficients(values, rules::lr_index(entry()))};
    }

    /// ValueError unless the format can hold what the update makes of each hyperparameter.
    void check(const engine::Update& update, double limit, numbers::DType number,
               const std::string& call, const std::size_t* group = nullptr) const {
        const auto unheld = update.coefficients.first_unheld(decay_, number);
        const std::string_view origin = unheld ? rules::origin(entry(), unheld->place) : "";
        if (origin.empty()) return;
        const auto& names = entry().hyperparameters;
        const auto named = std::find(names.begin(), names.end(), origin);
        double value = unheld->place == rules::index::limit ? limit : weight_decay_;
        if (named != names.end()) value = values_[static_cast<std::size_t>(named - names.begin())];
        const auto told = [](double x) { return py::repr(py::float_(x)).cast<std::string>(); };
        std::string name(origin);
        if (group != nullptr) name = "param_groups[" + std::to_string(*group) + "]['" + name + "']";
        const std::string made =
            value == unheld->value ? "" : ", which gives the coefficient " + told(unheld->value);
        const std::string range = number == numbers::DType::float32
                                      ? "1.2e-38 to 3.4e+38, as float32 holds (or use float64)"
                                      : "2.3e-308 to 1.7e+308, as float64 holds";
        throw py::value_error(call + ": " + name + " is " + told(value) + made +
                              ", expected 0 or a number from " + range);
    }

  private:
    static rules::Decay decay_of(const std::string& name) {
        if (name == "none") return rules::Decay::none;
        if (name == "coupled") return rules::Decay::coupled;
        if (name == "decoupled") return rules::Decay::decoupled;
        throw std::invalid_argument("no weight decay is called " + name);
    }

    std::size_t index_;
    rules::Decay decay_;
    double weight_decay_;
    std::vector<double> values_;
};

/// Steps of fewer elements are over before another thread could make use of the interpreter.
constexpr std::size_t gil_release_threshold = std::size_t{1} << 14;

/// Does the work of a step of so many elements, which cannot fail.
template <class Work>
void run_without_gil(std::size_t elements, const Work& work) {
    if (elements < gil_release_threshold) return work();
    const ReleaseGil others;
    const runtime::ForkGuard meanwhile;
    work();
}

/// Whether Python has more threads than this one.
bool has_other_threads() {
    return PyThreadState_Next(PyInterpreterState_ThreadHead(PyInterpreterState_Get())) != nullptr;
}

constexpr double no_limit = std::numeric_limits<double>::infinity();

/// What a step does besides its rule.
struct Options {
    enum class Nonfinite { propagate, raise, skip };

    double clip_norm = no_limit;
    double clip_value = no_limit;
    Nonfinite nonfinite = Nonfinite::propagate;
    bool clear_grads = false;
    double average = 0;  // the weight of the past, where there are averages
    bool average_from_zero = false;
    std::uint64_t seed = 0;  // of rounding at random

    Options() = default;
    explicit Options(const py::dict& values)
        : clip_norm(limit(values["clip_norm"])),
          clip_value(limit(values["clip_value"])),
          clear_grads(values["clear_grads"].cast<bool>()),
          average_from_zero(values["average_bias_correction"].cast<bool>()),
          seed(values["seed"].cast<std::uint64_t>()) {
        const auto name = values["nonfinite"].cast<std::string>();
        if (name == "raise") nonfinite = Nonfinite::raise;
        if (name == "skip") nonfinite = Nonfinite::skip;
        if (!values["average"].is_none()) average = values["average"].cast<double>();
    }

    /// As torch.nn.utils.clip_grad_norm_ has it: Pascanu, Mikolov & Bengio, 2013, algorithm 1, with
    /// something added to the norm. NaN for a norm that is none.
    numbers::Wide factor(const numbers::Wide& norm) const {
        if (clip_norm == no_limit) return numbers::Wide(1);
        const double denominator = norm.value() + 1e-6;
        const bool overflows = std::isinf(denominator) && std::isfinite(norm.digits);
        const numbers::Wide factor =
            numbers::Wide(clip_norm) / (overflows ? norm : numbers::Wide(denominator));
        return factor.value() >= 1 ? numbers::Wide(1) : factor;
    }

  private:
    static double limit(const py::object& value) {
        return value.is_none() ? no_limit : value.cast<double>();
    }
};

/// What came of a step.
struct Outcome {
    std::optional<double> grad_norm;  // of all gradients, scaled; if it had to be known
    bool clipped = false, skipped = false;
};

/// Parameters in the user's structure, their states, and the number of steps made with them.
class Plan {
  public:
    /// step, params, grads: what messages call the method and its arguments.
    Plan(const std::string& call, py::handle parameters, const std::string& step,
         const std::string& params, std::string grads)
        : call_(call),
          step_call_(call + "." + step),
          params_(params),
          grads_(std::move(grads)),
          tree_(parameters, call, params) {
        tree_.check_kept(call);
        const std::vector<py::object>& leaves = tree_.leaves();
        for (std::size_t i = 0; i < leaves.size(); ++i) {
            const Name name{call, tree_.name(params_, i)};
            parameters_.emplace_back(ArrayView(leaves[i], name), name);
        }
        for (const Parameter& parameter : parameters_) {
            check_shows_its_memory(parameter.array(), {call, parameter.name()});
            some_are_views_ = some_are_views_ || parameter.array().is_view();
            cache_.add(parameter.array());
        }
        written_ = write_set(parameters_, beside_);
        plan_.items.resize(tree_.size());
    }

    /// The parameters as users hold them: their own arrays, or those that other objects showed.
    py::list users_arrays() const {
        py::list result;
        for (const Parameter& parameter : parameters_) result.append(parameter.array().array());
        return result;
    }
    py::list users_copies() const {
        py::list result;
        for (const Parameter& parameter : parameters_) {
            if (has_copies_) result.append(parameter.companions().back().array.array());
        }
        return result;
    }

    /// New arrays of the parameters' memory, with the shapes and dtypes that they had when the plan
    /// was made. ValueError if a parameter has other memory now.
    py::list arrays() const {
        py::list result;
        for (const Parameter& parameter : parameters_) {
            if (!parameter.array().is_in_place()) parameter.refuse_change(call_);
            result.append(parameter.array().plain());
        }
        return result;
    }

    /// The same of the copies.
    py::list copies() const {
        py::list result;
        for (const Parameter& parameter : parameters_) {
            if (!has_copies_) break;
            parameter.check_copy(call_);
            result.append(parameter.companions().back().array.plain());
        }
        return result;
    }

    py::object unflatten(const py::list& leaves) const { return tree_.unflatten(leaves); }

    /// The leaves of another structure as they are given.
    py::list leaves(py::handle other, const std::string& call, const std::string& argument) const {
        std::vector<py::object> leaves;
        tree_.flatten(other, call, argument, leaves);
        py::list result;
        for (py::object& leaf : leaves) result.append(std::move(leaf));
        return result;
    }

    /// New arrays of the memory of another structure's leaves; if any are given, each like one of
    /// those, which messages call like_name.
    py::list flatten(py::handle other, const std::string& call, const std::string& argument,
                     const std::optional<std::vector<py::array>>& like,
                     const std::string& like_name) const {
        std::vector<py::object> leaves;
        tree_.flatten(other, call, argument, leaves);
        py::list result;
        for (std::size_t i = 0; i < leaves.size(); ++i) {
            const Name name{call, tree_.name(argument, i)};
            const ArrayView array(leaves[i], name);
            if (like) {
                const Name other_name{call, tree_.name(like_name, i)};
                check_like(array, name, ArrayView(like->at(i), other_name), other_name.argument);
            }
            result.append(array.plain());
        }
        return result;
    }

    /// For parameters that are those of groups: the groups are looked at before each step.
    void hold_groups(py::object groups) { tree_.hold_groups(std::move(groups), call_); }

    /// The leaves of the structure in which the user keeps copies. From now on it is looked at
    /// before each step, as that of the parameters is.
    py::list hold_copies(py::handle copies, const std::string& call) {
        copies_ = tree_.hold(copies, call, "copies");
        py::list result;
        for (const py::object& leaf : copies_->leaves) result.append(leaf);
        return result;
    }

    /// The name of a rule, how weight decay enters, and the hyperparameters.
    using GroupValues = std::tuple<std::string, std::string, py::dict>;

    /// By what they are called, each an array a parameter: for each state of the rule, in its
    /// order; and what rides along.
    struct Companions {
        std::vector<std::vector<py::object>> states;
        std::optional<std::vector<py::object>> averages, copies;
    };

    /// Other formulas from the next step on, of groups of parameters that all keep the same states;
    /// with other arrays beside the parameters, if they are given, of which the averages may be
    /// new. members: the group of each parameter. sum: whose gradients stay apart from what is
    /// written here. All or nothing, also where memory runs out.
    void configure(const std::vector<GroupValues>& groups, const std::vector<std::size_t>& members,
                   const py::dict& options_by_name, const std::optional<Companions>& companions,
                   bool new_averages, Plan* sum) {
        std::vector<Formula> formulas;
        for (const auto& [rule, decay, values] : groups) formulas.emplace_back(rule, decay, values);
        const Options options = options_by_name.empty() ? Options() : Options(options_by_name);
        std::vector<Formats> formats(groups.size());
        for (std::size_t i = 0; i < parameters_.size(); ++i) {
            formats.at(members.at(i))[static_cast<std::size_t>(parameters_[i].computed())] = true;
        }
        std::vector<engine::Update> updates;
        update(updates, formulas, formats, options.clip_value, call_);
        if (companions)
            set_companions(rules::state_names(formulas.at(0).entry()), *companions, sum);
        // From here on, nothing fails.
        if (new_averages) average_weights_ = {0, 0};
        for (std::size_t i = 0; i < plan_.items.size(); ++i) plan_.items[i].group = members.at(i);
        formulas_ = std::move(formulas);
        updates_ = std::move(updates);
        formats_ = std::move(formats);
        if (options.clear_grads && !options_.clear_grads) forget_gradients();
        options_ = options;
    }

    /// For Python's collector of cycles: what is seen, and letting go of it.
    int traverse(visitproc visit, void* arg) const {
        for (const auto* const parameters : {&parameters_, &beside_}) {
            for (const Parameter& parameter : *parameters) {
                if (const int result = parameter.traverse(visit, arg); result != 0) return result;
            }
        }
        if (const int result = written_.traverse(visit, arg); result != 0) return result;
        if (copies_) {
            if (const int result = copies_->traverse(visit, arg); result != 0) return result;
        }
        return tree_.traverse(visit, arg);
    }
    void release() {
        plan_.items.clear();
        plan_.invalidate();
        cache_ = {};
        const auto gone = std::make_tuple(std::exchange(tree_, Tree()), std::exchange(copies_, {}),
                                          std::exchange(parameters_, {}),
                                          std::exchange(beside_, {}), std::exchange(written_, {}));
    }

    /// ValueError unless a step can be made with rates, as step takes them.
    void check_rates(py::handle rates) const {
        std::vector<Formula> formulas = formulas_;
        std::vector<engine::Update> updates;
        set_rates(formulas, rates);
        update(updates, formulas, formats_, options_.clip_value, call_);
    }

    std::int64_t steps() const { return steps_; }
    void set_steps(std::int64_t steps) { steps_ = in_range(steps, "steps"); }

    /// What all that went into the averages weighs, in float32 and in float64, where the weights
    /// round differently.
    std::pair<double, double> average_weights() const { return average_weights_; }
    void set_average_weights(std::pair<double, double> weights) { average_weights_ = weights; }

    /// One call at a time: another thread, or a gradient that uses the optimizer while it is read,
    /// finds it busy. In the child of a fork, nobody has the turn that another thread had: a step
    /// was whole by then, but other changes (so Python says) are half done for good.
    class Turn {
      public:
        Turn(Plan& plan, const std::string& call, bool changes = false) : plan_(plan) {
            const std::uint64_t now = runtime::fork_generation() + 1;
            // A thread that forks in its turn has it in the child too; but ids of threads that are
            // gone come again.
            const bool kept = plan.turn_ == now - 1 && plan.turn_ != 0 &&
                              plan.owner_ == runtime::forking_thread();
            if (plan.turn_ == now || kept) plan.refuse_turn(call);
            if (plan.turn_ != 0 && plan.changes_) {
                throw std::runtime_error(call + ": the process forked while another thread " +
                                         "changed this " + plan.call_ +
                                         ", expected a fork before or after");
            }
            plan.turn_ = now;
            plan.owner_ = std::this_thread::get_id();
            plan.changes_ = changes;
            plan.gradients_.clear();
        }
        /// Lets go of the gradients.
        ~Turn() {
            plan_.gradients_.clear();
            plan_.turn_ = 0;
        }
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;

      private:
        Plan& plan_;
    };

    /// The norm of the last step's gradients, whether they were clipped, whether it was skipped.
    py::object last() const {
        if (!outcome_) return py::none();
        return py::make_tuple(outcome_->grad_norm, outcome_->clipped, outcome_->skipped);
    }
    std::int64_t skipped() const { return skipped_; }
    void set_skipped(std::int64_t skipped) { skipped_ = in_range(skipped, "skipped"); }

    /// rates: of every group, or for each. scale: what the gradients are multiplied by as they are
    /// read. rate_of: the step that the rates were asked for; 0 if they are those of every step.
    /// sum: of whose steps the gradients are the result, and which has made none afterwards.
    void step(py::handle grads, py::handle rates, double scale, std::int64_t rate_of,
              bool skip_nonfinite, Plan* sum) {
        const Turn turn(*this, step_call_);
        std::optional<Turn> turn_of_sum;
        if (sum != nullptr) {
            turn_of_sum.emplace(*sum, step_call_);
            if (sum->steps_ == 0) {
                throw py::value_error(step_call_ + ": there are no gradients, expected " + grads_ +
                                      ", or some accumulated");
            }
        }
        if (rate_of != 0 && rate_of != steps_ + 1) refuse_turn(step_call_);
        if (std::max<std::int64_t>(steps_, skipped_) >= rules::max_steps) {
            throw py::value_error(step_call_ + ": " + std::to_string(rules::max_steps) +
                                  " were counted, which is the most possible");
        }
        set_rates(formulas_, rates);
        update(updates_, formulas_, formats_, options_.clip_value, step_call_);
        // First all that may run code of the user's, last the checks that this could undo.
        tree_.flatten(grads, step_call_, grads_, gradients_);
        for (std::size_t i = 0; i < gradients_.size(); ++i) {
            if (is_plain_array(gradients_[i])) continue;
            gradients_[i] = as_array(gradients_[i], {step_call_, tree_.name(grads_, i)});
        }
        tree_.check_unchanged(step_call_);
        if (copies_) tree_.check_unchanged(*copies_, step_call_);
        check_shown_memory();
        const std::vector<py::object> held = hold_gradients();
        bool all_stayed = true;
        std::vector<std::pair<std::size_t, ArrayView>> unfamiliar;  // held until the step is over
        std::optional<ForgetGradients> forget_unless;               // what is found is sound
        for (std::size_t i = 0; i < parameters_.size(); ++i) {
            cache_.prefetch(i, gradients_);
            check_unchanged(i);
            engine::Item& item = plan_.items[i];
            if (std::byte* const first = cache_.matches(i, gradient(i)); first != nullptr) {
                all_stayed = all_stayed && item.gradient() == first &&
                             (!options_.clear_grads || gradient(i).writeable());
                item.data[rules::gradient_operand] =
                    first + item.layout.offset(rules::gradient_operand);
                continue;
            }
            if (!forget_unless) forget_unless.emplace(*this);
            plan_.invalidate();
            cache_.forget(i);  // until all is known of this one
            const Name name{step_call_, tree_.name(grads_, i)};
            unfamiliar.emplace_back(i, ArrayView(gradient(i), name));
            parameters_[i].take(unfamiliar.back().second, name, item);
        }
        const bool all_familiar = unfamiliar.empty();
        if (!all_familiar) get_to_know(unfamiliar);
        const bool must_be_cleared = options_.clear_grads && !(all_familiar && all_stayed);
        if (must_be_cleared) {
            if (!forget_unless) forget_unless.emplace(*this);
            check_can_be_cleared();
        }
        if (!all_familiar || must_be_cleared) {
            check_shown_memory();
            check_nothing_moved();
            forget_unless->sound = true;
        }
        make(scale, skip_nonfinite ? Options::Nonfinite::skip : options_.nonfinite);
        if (sum != nullptr) sum->steps_ = 0;
    }

    /// Before the copies are written otherwise than by a step.
    void check_copies(const std::string& call) const {
        if (copies_) tree_.check_unchanged(*copies_, call);
        for (const Parameter& parameter : parameters_) {
            parameter.check_shows_its_memory(call);
            parameter.check_copy(call);
        }
    }

    /// From now on, a gradient may not share memory with what the other plan writes either.
    void stay_apart_from(const Plan& other) { take(apart_from(other.parameters_)); }

  private:
    /// Which formats the parameters of a group are computed in.
    using Formats = std::array<bool, numbers::compute_dtype_count>;

    std::int64_t in_range(std::int64_t count, const std::string& name) const {
        if (count >= 0 && count <= rules::max_steps) return count;
        throw py::value_error(call_ + ": " + name + " is out of range");
    }

    [[noreturn]] void refuse_turn(const std::string& call) const {
        throw std::runtime_error(call + ": another call of " + call_ +
                                 " is under way, expected one at a time");
    }

    const py::array& gradient(std::size_t i) const {
        return static_cast<const py::array&>(gradients_[i]);
    }

    /// ValueError if a parameter or its copy is not as it was. Runs no Python unless it raises.
    void check_unchanged(std::size_t i) const {
        if (!cache_.parameter_is_unchanged(i)) parameters_[i].refuse_change(step_call_);
        if (some_are_views_ && !parameters_[i].array().is_in_place()) {
            parameters_[i].refuse_change(step_call_);
        }
        if (has_copies_) parameters_[i].check_copy(step_call_);
    }

    /// The same of what is no NumPy array: its memory is asked for again.
    void check_shown_memory() const {
        if (all_are_arrays_) return;
        for (const Parameter& parameter : parameters_) parameter.check_shows_its_memory(step_call_);
    }

    /// Takes in where gradients lie that a step has not met before. ValueError if one shares memory
    /// with what is written.
    void get_to_know(const std::vector<std::pair<std::size_t, ArrayView>>& gradients) {
        std::vector<Named> among_written;
        std::vector<Bounds> gaps;
        for (const auto& [i, gradient] : gradients) {
            const Bounds bounds = bounds_of(gradient);
            gaps.push_back(written_.free_range_around(bounds));
            if (!gaps.back().is_empty()) continue;
            among_written.push_back({gradient, tree_.name(grads_, i)});
            gaps.back() = bounds;  // where it is, it is apart, and nothing else is known
        }
        if (!among_written.empty()) {
            written_.check_disjoint_from(step_call_, std::move(among_written));
        }
        for (std::size_t k = 0; k < gradients.size(); ++k) {
            cache_.remember(gradients[k].first, gradients[k].second, gaps[k]);
        }
    }

    /// What keeps NumPy from resizing gradients while other threads run. Before the first step the
    /// number of elements is not known, but all gradients are unfamiliar then, and held as such.
    std::vector<py::object> hold_gradients() const {
        std::vector<py::object> held;
        if (plan_.elements() < gil_release_threshold || !has_other_threads()) return held;
        held.reserve(gradients_.size());
        for (std::size_t i = 0; i < gradients_.size(); ++i) held.push_back(hold(gradient(i)));
        return held;
    }

    /// What was checked may have been changed meanwhile by whatever the interpreter ran in between.
    void check_nothing_moved() const {
        for (std::size_t i = 0; i < parameters_.size(); ++i) {
            check_unchanged(i);
            const engine::Item& item = plan_.items[i];
            if (cache_.at_address(i, gradient(i), item.gradient())) continue;
            throw py::value_error(step_call_ + ": " + tree_.name(grads_, i) +
                                  " was changed while it was read, expected it to stay as it is");
        }
    }

    void set_companions(const std::vector<std::string_view>& state_names,
                        const Companions& companions, Plan* sum) {
        std::vector<Parameter> parameters = parameters_;
        bool all_are_arrays = true;
        for (std::size_t i = 0; i < parameters.size(); ++i) {
            std::vector<Parameter::AuxArray> own;
            const auto add = [&](engine::Role role, const std::vector<py::object>& arrays,
                                 const std::string& name) {
                own.push_back(companion(parameters[i], role, arrays.at(i), tree_.name(name, i)));
            };
            for (std::size_t k = 0; k < state_names.size(); ++k) {
                add(engine::Role::state, companions.states.at(k),
                    "state['" + std::string(state_names[k]) + "']");
            }
            if (companions.averages) add(engine::Role::average, *companions.averages, "average");
            if (companions.copies) add(engine::Role::copy, *companions.copies, "copies");
            parameters[i].set_companions(std::move(own), call_);
            all_are_arrays = all_are_arrays && parameters[i].is_all_arrays();
        }
        WriteSet written = write_set(parameters, beside_);
        std::optional<Apart> of_sum;
        if (sum != nullptr) of_sum = sum->apart_from(parameters);
        // From here on, nothing fails.
        if (sum != nullptr) sum->take(std::move(*of_sum));
        written_ = std::move(written);
        parameters_ = std::move(parameters);
        has_averages_ = companions.averages.has_value();
        has_copies_ = companions.copies.has_value();
        all_are_arrays_ = all_are_arrays;
        forget_gradients();
    }

    /// An array that goes with a parameter; as it was first seen, if it has gone with it before.
    Parameter::AuxArray companion(const Parameter& parameter, engine::Role role, py::handle array,
                                  std::string name) const {
        for (const Parameter::AuxArray& known : parameter.companions()) {
            if (known.array.object().is(array)) return {role, known.array, std::move(name)};
        }
        const ArrayView view(array, {call_, name});
        check_shows_its_memory(view, {call_, name});
        return {role, view, std::move(name)};
    }

    /// rates: a float, or a tuple with one for each group.
    static void set_rates(std::vector<Formula>& formulas, py::handle rates) {
        if (PyFloat_Check(rates.ptr()) != 0) {
            const double rate = PyFloat_AS_DOUBLE(rates.ptr());
            for (Formula& formula : formulas) formula.set_rate(rate);
        } else {
            const auto each = rates.cast<std::vector<double>>();
            for (std::size_t i = 0; i < formulas.size(); ++i) formulas[i].set_rate(each.at(i));
        }
    }

    /// What the next step needs of the formulas; ValueError where a format cannot hold it.
    void update(std::vector<engine::Update>& updates, const std::vector<Formula>& formulas,
                const std::vector<Formats>& formats, double limit, const std::string& call) const {
        updates.resize(formulas.size());
        for (std::size_t i = 0; i < formulas.size(); ++i) {
            updates[i] = formulas[i].update(steps_ + 1, limit);
            const std::size_t* const group = formulas.size() > 1 ? &i : nullptr;
            for (std::size_t k = 0; k < formats[i].size(); ++k) {
                const auto number = static_cast<numbers::DType>(k);
                if (formats[i][k]) formulas[i].check(updates[i], limit, number, call, group);
            }
        }
    }

    void forget_gradients() {
        for (std::size_t i = 0; i < parameters_.size(); ++i) cache_.forget(i);
    }

    /// A refused step may have laid items out for what was seen while it changed.
    struct ForgetGradients {
        explicit ForgetGradients(Plan& of) : plan(of) {}
        ~ForgetGradients() {
            if (!sound) plan.forget_gradients();
        }
        ForgetGradients(const ForgetGradients&) = delete;
        ForgetGradients& operator=(const ForgetGradients&) = delete;

        Plan& plan;
        bool sound = false;
    };

    /// ValueError unless each gradient can be written, and shares memory with no other.
    void check_can_be_cleared() const {
        std::vector<Named> gradients;
        for (std::size_t i = 0; i < gradients_.size(); ++i) {
            const Name name{step_call_, tree_.name(grads_, i)};
            gradients.push_back({ArrayView(gradient(i), name), name.argument});
            check_writable(gradients.back().array, name);
        }
        check_disjoint(step_call_, gradients);
    }

    /// The average of the parameters after the step that comes. Bias inv_bias2 needs it to begin
    /// with zero; else it begins with what the first step makes.
    engine::Update averaging() noexcept {
        const bool first = average_weights_.second == 0 && !options_.average_from_zero;
        const double beta = first ? 0 : options_.average;
        const auto weigh = [beta](double weight, auto zero) {
            const auto gain = static_cast<decltype(zero)>(1 - beta);
            return weight + static_cast<double>(gain) * (1 - weight);
        };
        auto& [in_float32, in_float64] = average_weights_;
        in_float32 = weigh(in_float32, 0.0F);
        in_float64 = weigh(in_float64, 0.0);
        // A product with 0 would keep what is not finite.
        Formula& formula = beta == 0 ? first_average_ : average_;
        formula.set_rate(beta);
        return formula.update(1, no_limit);
    }

    /// Makes the step, as the options have it.
    void make(double scale, Options::Nonfinite nonfinite_option) {
        const bool check_finite = nonfinite_option != Options::Nonfinite::propagate;
        const bool survey_first = check_finite || options_.clip_norm != no_limit;
        plan_.prepare();
        if (survey_first) plan_.prepare_survey();
        std::size_t nonfinite = parameters_.size();
        Outcome outcome;
        run_without_gil(plan_.elements(), [&]() noexcept {
            numbers::Wide factor(scale);
            if (survey_first) {
                const engine::GradientStats& survey = plan_.survey();
                const numbers::Wide norm = numbers::Wide(std::fabs(scale)) * survey.norm();
                outcome.grad_norm = norm.value();
                if (check_finite) nonfinite = survey.first_nonfinite();
                outcome.skipped = nonfinite < parameters_.size();
                if (outcome.skipped) {
                    const bool raise = nonfinite_option == Options::Nonfinite::raise;
                    if (options_.clear_grads && !raise) plan_.run({.clear_gradients = true});
                    return;
                }
                const numbers::Wide clip = options_.factor(norm);
                outcome.clipped = clip.value() != 1;
                factor = factor * clip;
            }
            for (engine::Update& update : updates_) update.coefficients.set_scale(factor);
            engine::Run run{.groups = updates_.data(),
                            .clear_gradients = options_.clear_grads,
                            .seed = options_.seed,
                            .step = static_cast<std::uint64_t>(steps_ + 1)};
            std::optional<engine::Update> average;
            if (has_averages_) run.average = &average.emplace(averaging());
            plan_.run(run);
            ++steps_;
        });
        if (outcome.skipped && nonfinite_option == Options::Nonfinite::raise) {
            const std::string message = step_call_ + ": " + tree_.name(grads_, nonfinite) +
                                        " has a NaN or an infinity, expected finite numbers";
            PyErr_SetString(PyExc_FloatingPointError, message.c_str());
            throw py::error_already_set();
        }
        skipped_ += outcome.skipped ? 1 : 0;
        outcome_ = outcome;
    }

    WriteSet write_set(const std::vector<Parameter>& parameters,
                       const std::vector<Parameter>& beside) const {
        std::vector<Named> arrays;
        for (const Parameter& parameter : parameters) parameter.append_written(arrays);
        for (const Parameter& parameter : beside) parameter.append_written(arrays);
        return {call_, std::move(arrays)};
    }

    /// What a plan is to know of another's parameters: made first, and taken without a failure.
    struct Apart {
        std::vector<Parameter> beside;
        WriteSet written;
    };
    Apart apart_from(const std::vector<Parameter>& others) const {
        return {others, write_set(parameters_, others)};
    }
    void take(Apart&& apart) {
        beside_ = std::move(apart.beside);
        written_ = std::move(apart.written);
        forget_gradients();
    }

    std::string call_, step_call_, params_, grads_;
    Tree tree_;
    std::optional<Tree::Held> copies_;  // as the user keeps them
    std::vector<Parameter> parameters_;
    std::vector<Parameter> beside_;  // another plan's
    WriteSet written_;
    ArrayCache cache_;
    std::vector<Formula> formulas_;        // of the groups
    std::vector<engine::Update> updates_;  // the same, in the step under way
    std::vector<Formats> formats_;         // of each group
    Formula average_{"average"}, first_average_{"accumulation_first"};
    bool has_averages_ = false, has_copies_ = false;
    bool all_are_arrays_ = true;   // NumPy's, parameters and copies
    bool some_are_views_ = false;  // of memory that another array owns
    Options options_;
    std::optional<Outcome> outcome_;  // of the last step
    std::int64_t skipped_ = 0;        // steps
    engine::Plan plan_;
    std::vector<py::object> gradients_;  // of the step under way
    std::atomic<std::int64_t> steps_ = 0;
    std::pair<double, double> average_weights_ = {0, 0};
    std::uint64_t turn_ = 0;  // 1 + the generation of the process in which someone has it
    std::thread::id owner_;   // who has the turn
    bool changes_ = false;    // whether it is for other changes than a step
};

/// A turn as Python takes it: with a plan's turn() as context manager.
class TakenTurn {
  public:
    TakenTurn(py::object plan, std::string call, bool changes)
        : plan_(std::move(plan)), call_(std::move(call)), changes_(changes) {}
    void enter() { turn_ = std::make_unique<Plan::Turn>(plan_.cast<Plan&>(), call_, changes_); }
    void exit(const py::args&) { turn_.reset(); }

  private:
    py::object plan_;
    std::string call_;
    bool changes_;
    std::unique_ptr<Plan::Turn> turn_;
};

/// One step of one parameter, with states that the caller keeps.
void update(const std::string& call, const std::string& rule, const std::string& decay,
            const py::dict& values, std::int64_t t, double scale, double clip_value,
            py::handle param, py::handle grad, const py::args& states) {
    const Formula formula(rule, decay, values);
    if (states.size() != formula.entry().states.size()) {
        throw py::type_error(call + ": a step of " + rule + " takes " +
                             std::to_string(formula.entry().states.size()) + " states");
    }
    // First all that may run code of the user's, then the checks that this could undo.
    const ArrayView gradient(grad, {call, "grad"});
    std::vector<Named> arrays = {{ArrayView(param, {call, "param"}), "param"}};
    for (const auto state : rules::state_names(formula.entry())) {
        std::string name(state);
        const ArrayView array(states[arrays.size() - 1], {call, name});
        arrays.push_back({array, std::move(name)});
    }
    for (const Named& each : arrays) check_shows_its_memory(each.array, {call, each.argument});
    Parameter parameter(arrays[0].array, {call, "param"});
    std::vector<Parameter::AuxArray> companions;
    for (std::size_t i = 1; i < arrays.size(); ++i) {
        // Not in bfloat16: there is no seed to round it with.
        const auto& [array, name, written] = arrays[i];
        check_companion(array, {call, name}, DtypeRule::compute, parameter.array(), "param");
        companions.push_back({engine::Role::state, array, name});
    }
    parameter.set_companions(std::move(companions), call);
    engine::Plan plan;
    plan.items.resize(1);
    parameter.take(gradient, {call, "grad"}, plan.items[0]);
    arrays.push_back({gradient, "grad", false});
    check_disjoint(call, arrays);
    for (const Named& each : arrays) check_has_its_memory(each.array, {call, each.argument});
    plan.prepare();
    engine::Update step = formula.update(t, clip_value);
    formula.check(step, clip_value, parameter.computed(), call);
    step.coefficients.set_scale(numbers::Wide(scale));
    run_without_gil(plan.elements(), [&]() noexcept { plan.run({.groups = &step}); });
}

/// The structure with function(array) in the place of each array. written: whether the arrays will
/// be written to, so that the structure has to keep them.
py::object map_arrays(const py::function& function, py::handle structure, const std::string& call,
                      const std::string& argument, bool written) {
    const Tree tree(structure, call, argument);
    if (written) tree.check_kept(call);
    py::list results;
    for (const py::object& leaf : tree.leaves()) {
        const ArrayView array(leaf, {call, tree.name(argument, results.size())});
        results.append(function(array.plain()));
    }
    return tree.unflatten(results);
}

/// A view of an array that NumPy does not resize as long as the view lives.
py::array held(py::handle array) {
    return ArrayView(array, {"held", "array"}).plain();
}

std::vector<std::string> state_names(const std::string& rule) {
    const auto names = rules::state_names(rules::registry()[rules::find_rule(rule)]);
    return {names.begin(), names.end()};
}

/// Lets Python's collector see through a plan to the user's objects that it holds.
void make_collectable(PyHeapTypeObject* heap_type) {
    PyTypeObject& type = heap_type->ht_type;
    type.tp_flags |= Py_TPFLAGS_HAVE_GC;
    type.tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
        Py_VISIT(Py_TYPE(self));
        if (!py::detail::is_holder_constructed(self)) return 0;
        return py::cast<const Plan&>(py::handle(self)).traverse(visit, arg);
    };
    type.tp_clear = [](PyObject* self) {
        if (py::detail::is_holder_constructed(self)) py::cast<Plan&>(py::handle(self)).release();
        return 0;
    };
}

}  // namespace

void register_steps(py::module_& module) {
    py::class_<TakenTurn>(module, "Turn")
        .def("__enter__", &TakenTurn::enter)
        .def("__exit__", &TakenTurn::exit);
    py::class_<Plan>(module, "Plan", py::custom_type_setup(make_collectable))
        .def(py::init<const std::string&, py::handle, const std::string&, const std::string&,
                      std::string>(),
             py::arg("call"), py::arg("parameters"), py::arg("step") = "step",
             py::arg("params") = "params", py::arg("grads") = "grads")
        .def_property_readonly("users_arrays", &Plan::users_arrays)
        .def_property_readonly("users_copies", &Plan::users_copies)
        .def_property_readonly("arrays", &Plan::arrays)
        .def_property_readonly("copies", &Plan::copies)
        .def("leaves", &Plan::leaves, py::arg("other"), py::arg("call"), py::arg("argument"))
        .def("unflatten", &Plan::unflatten, py::arg("leaves"))
        .def("flatten", &Plan::flatten, py::arg("other"), py::arg("call"), py::arg("argument"),
             py::arg("like") = py::none(), py::arg("like_name") = "")
        .def("hold_groups", &Plan::hold_groups, py::arg("groups"))
        .def("hold_copies", &Plan::hold_copies, py::arg("copies"), py::arg("call"))
        .def(
            "configure",
            [](Plan& plan, const std::vector<Plan::GroupValues>& groups,
               const std::vector<std::size_t>& members, const py::dict& options,
               const std::optional<std::tuple<decltype(Plan::Companions::states),
                                              decltype(Plan::Companions::averages),
                                              decltype(Plan::Companions::copies)>>& companions,
               bool new_averages, Plan* sum) {
                std::optional<Plan::Companions> given;
                if (companions) {
                    given = std::apply(
                        [](const auto&... each) { return Plan::Companions{each...}; }, *companions);
                }
                plan.configure(groups, members, options, given, new_averages, sum);
            },
            py::arg("groups"), py::arg("members"), py::arg("options"), py::arg("companions"),
            py::arg("new_averages") = false, py::arg("sum") = py::none())
        .def(
            "turn",
            [](py::object plan, std::string call, bool changes) {
                return TakenTurn(std::move(plan), std::move(call), changes);
            },
            py::arg("call"), py::arg("changes") = false)
        .def_property("steps", &Plan::steps, &Plan::set_steps)
        .def_property("average_weights", &Plan::average_weights, &Plan::set_average_weights)
        .def_property_readonly("last", &Plan::last)
        .def_property("skipped", &Plan::skipped, &Plan::set_skipped)
        .def("step", &Plan::step, py::arg("grads"), py::arg("rates"), py::arg("scale") = 1.0,
             py::arg("rate_of") = 0, py::arg("skip_nonfinite") = false, py::arg("sum") = py::none())
        .def("check_rates", &Plan::check_rates, py::arg("rates"))
        .def("check_copies", &Plan::check_copies, py::arg("call"))
        .def("stay_apart_from", &Plan::stay_apart_from, py::arg("other"));
    module.def("update", &update, py::arg("call"), py::arg("rule"), py::arg("decay"),
               py::arg("values"), py::arg("t"), py::arg("scale"), py::arg("clip_value"),
               py::arg("param"), py::arg("grad"));
    module.def("map_arrays", &map_arrays, py::arg("function"), py::arg("structure"),
               py::arg("call"), py::arg("argument"), py::arg("written") = false);
    module.def("held", &held, py::arg("array"));
    module.def("states", &state_names, py::arg("rule"));
    module.def("set_parallel_threshold", &engine::set_parallel_threshold, py::arg("elements"));
    module.def("set_tile_elements", &engine::set_tile_elements, py::arg("elements"));
}

}  // namespace schuss::bindings
