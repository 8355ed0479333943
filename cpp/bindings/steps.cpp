// A step as Python calls it: with arrays that a Plan holds, or with arrays given each time.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/glances.hpp"
#include "bindings/others_may_run.hpp"
#include "bindings/parameter.hpp"
#include "bindings/register.hpp"
#include "bindings/tree.hpp"
#include "engine/cpu.hpp"
#include "engine/fork.hpp"
#include "engine/plan.hpp"
#include "rules/book.hpp"

namespace schuss::bindings {
namespace {

/// A rule with the values of its hyperparameters. Their ranges are Python's to check.
class Formula {
  public:
    Formula(const std::string& rule, const std::string& decay, const py::dict& values)
        : index_(rules::find(rule)), decay_(decay_of(decay)) {
        weight_decay_ = values["weight_decay"].cast<double>();
        for (const auto name : entry().hyperparameters) {
            values_.push_back(values[name.data()].cast<double>());
        }
    }

    const rules::Entry& entry() const { return rules::book()[index_]; }
    void set_rate(double rate) { values_[0] = rate; }

    /// What a step needs: nothing of the interpreter's.
    engine::Coefficients coefficients(std::int64_t t) const {
        return engine::Coefficients(
            rules::coefficients(entry(), values_.data(), weight_decay_, static_cast<double>(t)));
    }
    const sweep::Kernels& kernels() const { return engine::level().rules[index_]; }
    rules::Decay decay() const { return decay_; }

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
constexpr std::size_t worth_letting_others_run = std::size_t{1} << 14;

/// Makes step t, and counts it before anyone can see it.
template <class Count>
void run(engine::Plan& plan, const Formula& formula, std::int64_t t, Count count) {
    const engine::Coefficients coefficients = formula.coefficients(t);
    const bool alone = plan.prepare() < worth_letting_others_run;
    // Nothing from here on can fail.
    const auto make = [&]() noexcept {
        plan.run(formula.kernels(), formula.decay(), coefficients);
        count();
    };
    if (alone) return make();
    const OthersMayRun others;
    const engine::Unforked meanwhile;
    make();
}

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
        const std::vector<py::object> leaves = tree_.take_leaves();
        for (std::size_t i = 0; i < leaves.size(); ++i) {
            parameters_.emplace_back(leaves[i], Name{call, tree_.name(params_, i)});
            glances_.add(parameters_[i].array());
        }
        written_ = written_memory(parameters_);
        plan_.items.resize(tree_.size());
    }

    py::list arrays() const {
        py::list result;
        for (const Parameter& parameter : parameters_) result.append(parameter.array());
        return result;
    }

    py::object unflatten(const py::list& leaves) const { return tree_.unflatten(leaves); }

    py::list flatten(py::handle other, const std::string& call, const std::string& argument) const {
        std::vector<py::object> leaves;
        tree_.flatten(other, call, argument, leaves);
        py::list result;
        for (std::size_t i = 0; i < leaves.size(); ++i) {
            const Name name{call, tree_.name(argument, i)};
            py::array array = as_array(leaves[i], name);
            check_like(array, name, parameters_[i].array(), tree_.name(params_, i));
            result.append(std::move(array));
        }
        return result;
    }

    /// Another formula from the next step on; with other arrays as states, if they are given: for
    /// each state of the rule, in its order, an array a parameter. All or nothing.
    void configure(const std::string& rule, const std::string& decay, const py::dict& values,
                   const std::optional<std::vector<std::vector<py::array>>>& states) {
        Formula formula(rule, decay, values);
        if (states) set_states(formula.entry().states, *states);
        formula_ = std::move(formula);
    }

    /// For Python's collector of cycles: what is seen, and letting go of it.
    int traverse(visitproc visit, void* arg) const {
        for (const Parameter& parameter : parameters_) Py_VISIT(parameter.array().ptr());
        if (const int result = written_.traverse(visit, arg); result != 0) return result;
        return tree_.traverse(visit, arg);
    }
    void release() {
        plan_.items.clear();
        plan_.disarrange();
        glances_ = {};
        const auto gone = std::make_tuple(std::exchange(tree_, Tree()), std::move(parameters_),
                                          std::exchange(written_, {}));
        parameters_.clear();
    }

    std::int64_t steps() const { return steps_; }
    void set_steps(std::int64_t steps) {
        if (steps < 0 || steps > rules::most_steps) {
            throw py::value_error(call_ + ": steps is out of range");
        }
        steps_ = steps;
    }

    /// One call at a time: another thread, or a gradient that uses the optimizer while it is read,
    /// finds it busy. In the child of a fork, nobody has the turn that another thread had: a step
    /// was whole by then, but other changes (so Python says) are half done for good.
    class Turn {
      public:
        Turn(Plan& plan, const std::string& call, bool changes = false) : plan_(plan) {
            const std::uint64_t now = engine::fork_generation() + 1;
            // A thread that forks in its turn has it in the child too; but ids of threads that are
            // gone come again.
            const bool kept =
                plan.turn_ == now - 1 && plan.turn_ != 0 && plan.owner_ == engine::forking_thread();
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

    /// rate_of: the step that the rate was asked for; 0 if it is one for every step.
    void step(py::handle grads, double rate, std::int64_t rate_of) {
        const Turn turn(*this, step_call_);
        if (rate_of != 0 && rate_of != steps_ + 1) refuse_turn(step_call_);
        // First all that may run code of the user's, last the checks that this could undo.
        tree_.flatten(grads, step_call_, grads_, gradients_);
        for (std::size_t i = 0; i < gradients_.size(); ++i) {
            if (py::isinstance<py::array>(gradients_[i])) continue;
            gradients_[i] = as_array(gradients_[i], {step_call_, tree_.name(grads_, i)});
        }
        tree_.check_unchanged(step_call_);
        bool all_familiar = true;
        std::optional<ForgetGradients> forget_unless;  // what is found is sound
        for (std::size_t i = 0; i < parameters_.size(); ++i) {
            glances_.fetch_ahead(i, gradients_);
            if (!glances_.parameter_is_unchanged(i)) parameters_[i].refuse_change(step_call_);
            engine::Item& item = plan_.items[i];
            if (std::byte* const first = glances_.familiar(i, gradient(i)); first != nullptr) {
                item.data[rules::gradient_operand] =
                    first + item.layout.offset(rules::gradient_operand);
                continue;
            }
            if (all_familiar) forget_unless.emplace(*this);
            all_familiar = false;
            plan_.disarrange();
            glances_.forget(i);  // until all is known of this one
            const Name name{step_call_, tree_.name(grads_, i)};
            const Bounds gap = parameters_[i].take(gradient(i), name, written_, item);
            glances_.remember(i, gradient(i), gap);
        }
        if (!all_familiar) {
            check_nothing_moved();
            forget_unless->sound = true;
        }
        formula_.value().set_rate(rate);
        run(plan_, *formula_, steps_ + 1, [this]() noexcept { ++steps_; });
    }

  private:
    [[noreturn]] void refuse_turn(const std::string& call) const {
        throw std::runtime_error(call + ": another call of " + call_ +
                                 " is under way, expected one at a time");
    }

    const py::array& gradient(std::size_t i) const {
        return static_cast<const py::array&>(gradients_[i]);
    }

    /// What was checked may have been changed meanwhile by whatever the interpreter ran in between.
    void check_nothing_moved() const {
        for (std::size_t i = 0; i < parameters_.size(); ++i) {
            if (!glances_.parameter_is_unchanged(i)) parameters_[i].refuse_change(step_call_);
            const engine::Item& item = plan_.items[i];
            const std::byte* const first =
                item.data[rules::gradient_operand] - item.layout.offset(rules::gradient_operand);
            if (glances_.lies_at(i, gradient(i), first)) continue;
            throw py::value_error(step_call_ + ": " + tree_.name(grads_, i) +
                                  " was changed while it was read, expected it to stay as it is");
        }
    }

    /// states: for each state of the rule, in its order, an array a parameter.
    void set_states(const std::vector<std::string_view>& names,
                    const std::vector<std::vector<py::array>>& states) {
        std::vector<Parameter> parameters = parameters_;
        for (std::size_t i = 0; i < parameters.size(); ++i) {
            std::vector<py::array> arrays;
            std::vector<std::string> arguments;
            for (std::size_t k = 0; k < names.size(); ++k) {
                arrays.push_back(states.at(k).at(i));
                arguments.push_back(tree_.name("state['" + std::string(names[k]) + "']", i));
            }
            parameters[i].set_states(std::move(arrays), call_, arguments);
        }
        written_ = written_memory(parameters);
        parameters_ = std::move(parameters);
        forget_gradients();
    }

    void forget_gradients() {
        for (std::size_t i = 0; i < parameters_.size(); ++i) glances_.forget(i);
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

    WrittenMemory written_memory(const std::vector<Parameter>& parameters) const {
        std::vector<WrittenMemory::Entry> entries;
        for (const Parameter& parameter : parameters) parameter.append_written(entries);
        return {call_, std::move(entries)};
    }

    std::string call_, step_call_, params_, grads_;
    Tree tree_;
    std::vector<Parameter> parameters_;
    WrittenMemory written_;
    Glances glances_;
    std::optional<Formula> formula_;
    engine::Plan plan_;
    std::vector<py::object> gradients_;  // of the step under way
    std::atomic<std::int64_t> steps_ = 0;
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
            const py::dict& values, std::int64_t t, py::handle param, py::handle grad,
            const py::args& states) {
    const Formula formula(rule, decay, values);
    if (states.size() != formula.entry().states.size()) {
        throw py::type_error(call + ": a step of " + rule + " takes " +
                             std::to_string(formula.entry().states.size()) + " states");
    }
    const Name name{call, "grad"};
    // First all that may run code of the user's, then the checks that this could undo.
    const py::array gradient = as_array(grad, name);
    const py::array array = as_array(param, {call, "param"});
    std::vector<py::array> arrays;
    std::vector<std::string> names;
    for (const auto state : formula.entry().states) {
        names.emplace_back(state);
        arrays.push_back(as_array(states[arrays.size()], {call, names.back()}));
    }
    Parameter parameter(array, {call, "param"});
    parameter.set_states(std::move(arrays), call, names);
    std::vector<WrittenMemory::Entry> entries;
    parameter.append_written(entries);
    const WrittenMemory written(call, std::move(entries));

    Glances glances;
    glances.add(parameter.array());
    engine::Plan plan;
    plan.items.resize(1);
    parameter.take(gradient, name, written, plan.items[0]);
    if (!glances.parameter_is_unchanged(0)) parameter.refuse_change(call);
    run(plan, formula, t, []() noexcept {});
}

/// The structure with function(array) in the place of each array.
py::object map_arrays(const py::function& function, py::handle structure, const std::string& call,
                      const std::string& argument) {
    Tree tree(structure, call, argument);
    py::list results;
    for (const py::object& leaf : tree.take_leaves()) {
        results.append(function(as_array(leaf, {call, tree.name(argument, results.size())})));
    }
    return tree.unflatten(results);
}

std::vector<std::string> state_names(const std::string& rule) {
    const auto& names = rules::book()[rules::find(rule)].states;
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
        .def_property_readonly("arrays", &Plan::arrays)
        .def("unflatten", &Plan::unflatten, py::arg("leaves"))
        .def("flatten", &Plan::flatten, py::arg("other"), py::arg("call"), py::arg("argument"))
        .def("configure", &Plan::configure, py::arg("rule"), py::arg("decay"), py::arg("values"),
             py::arg("states"))
        .def(
            "turn",
            [](py::object plan, std::string call, bool changes) {
                return TakenTurn(std::move(plan), std::move(call), changes);
            },
            py::arg("call"), py::arg("changes") = false)
        .def_property("steps", &Plan::steps, &Plan::set_steps)
        .def("step", &Plan::step, py::arg("grads"), py::arg("rate"), py::arg("rate_of") = 0);
    module.def("update", &update, py::arg("call"), py::arg("rule"), py::arg("decay"),
               py::arg("values"), py::arg("t"), py::arg("param"), py::arg("grad"));
    module.def("map_arrays", &map_arrays, py::arg("function"), py::arg("structure"),
               py::arg("call"), py::arg("argument"));
    module.def("states", &state_names, py::arg("rule"));
    module.def("set_worth_sharing", &engine::set_worth_sharing, py::arg("elements"));
    module.def("set_tile_elements", &engine::set_tile_elements, py::arg("elements"));
}

}  // namespace schuss::bindings
