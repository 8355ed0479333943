// A step as Python calls it: with arrays that a Plan holds, or with arrays given each time.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/parameter.hpp"
#include "bindings/register.hpp"
#include "bindings/tree.hpp"
#include "engine/cpu.hpp"
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

    void run(engine::Plan& plan, std::int64_t t) const {
        const engine::Coefficients coefficients(
            rules::coefficients(entry(), values_.data(), weight_decay_, static_cast<double>(t)));
        plan.run(engine::level().rules[index_], decay_, coefficients);
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

    /// states: for each state of the rule, in its order, an array a parameter.
    void bind(const std::string& rule, const std::vector<std::vector<py::array>>& states) {
        const Turn turn(*this);
        const auto& names = rules::book()[rules::find(rule)].states;
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
        rule_ = rule;
        formula_.reset();
    }

    void set_hyperparameters(const std::string& decay, const py::dict& values) {
        const Turn turn(*this);
        formula_ = Formula(rule_, decay, values);
    }

    /// For Python's collector of cycles: what is seen, and letting go of it.
    int traverse(visitproc visit, void* arg) const {
        for (const Parameter& parameter : parameters_) Py_VISIT(parameter.array().ptr());
        if (const int result = written_.traverse(visit, arg); result != 0) return result;
        return tree_.traverse(visit, arg);
    }
    void release() {
        plan_.items.clear();
        const auto gone = std::make_tuple(std::exchange(tree_, Tree()), std::move(parameters_),
                                          std::exchange(written_, {}));
        parameters_.clear();
    }

    std::int64_t steps() const { return steps_; }
    void set_steps(std::int64_t steps) {
        if (steps < 0 || steps > rules::most_steps) {
            throw py::value_error(call_ + ": steps is out of range");
        }
        const Turn turn(*this);
        steps_ = steps;
    }

    void step(py::handle grads, double rate) {
        const Turn turn(*this);
        // First all that may run code of the user's, last the checks that this could undo.
        tree_.flatten(grads, step_call_, grads_, gradients_);
        for (std::size_t i = 0; i < gradients_.size(); ++i) {
            if (py::isinstance<py::array>(gradients_[i])) continue;
            gradients_[i] = as_array(gradients_[i], {step_call_, tree_.name(grads_, i)});
        }
        tree_.check_unchanged(step_call_);
        bool all_as_before = true;
        for (std::size_t i = 0; i < parameters_.size(); ++i) {
            parameters_[i].check_unchanged(step_call_);
            if (parameters_[i].take_like_the_last(gradient(i), plan_.items[i])) continue;
            const Name name{step_call_, tree_.name(grads_, i)};
            plan_.disarrange();
            parameters_[i].take(gradient(i), name, written_, plan_.items[i]);
            all_as_before = false;
        }
        if (!all_as_before) check_nothing_moved();
        formula_.value().set_rate(rate);
        formula_->run(plan_, steps_ + 1);
        ++steps_;
    }

  private:
    /// One call at a time: gradients that use the optimizer while they are read, or another thread,
    /// find it busy. Lets go of the gradients in the end.
    class Turn {
      public:
        explicit Turn(Plan& plan) : plan_(plan) {
            if (plan.busy_) {
                throw std::runtime_error(plan.step_call_ + ": another call of it is under way");
            }
            plan.busy_ = true;
        }
        ~Turn() {
            plan_.gradients_.clear();
            plan_.busy_ = false;
        }
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;

      private:
        Plan& plan_;
    };

    const py::array& gradient(std::size_t i) const {
        return static_cast<const py::array&>(gradients_[i]);
    }

    /// What was checked may have been changed meanwhile by whatever the interpreter ran in between.
    void check_nothing_moved() const {
        for (std::size_t i = 0; i < parameters_.size(); ++i) {
            parameters_[i].check_unchanged(step_call_);
            if (parameters_[i].lies_as_taken(gradient(i), plan_.items[i])) continue;
            throw py::value_error(step_call_ + ": " + tree_.name(grads_, i) +
                                  " was changed while it was read, expected it to stay as it is");
        }
    }

    WrittenMemory written_memory(const std::vector<Parameter>& parameters) const {
        std::vector<WrittenMemory::Entry> entries;
        for (const Parameter& parameter : parameters) parameter.append_written(entries);
        return {call_, std::move(entries)};
    }

    std::string call_, step_call_, params_, grads_;
    Tree tree_;
    std::vector<Parameter> parameters_;
    WrittenMemory written_;
    std::string rule_;
    std::optional<Formula> formula_;
    engine::Plan plan_;
    std::vector<py::object> gradients_;  // of the step under way
    std::int64_t steps_ = 0;
    bool busy_ = false;
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

    engine::Plan plan;
    plan.items.resize(1);
    parameter.take(gradient, name, written, plan.items[0]);
    parameter.check_unchanged(call);
    formula.run(plan, t);
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
    py::class_<Plan>(module, "Plan", py::custom_type_setup(make_collectable))
        .def(py::init<const std::string&, py::handle, const std::string&, const std::string&,
                      std::string>(),
             py::arg("call"), py::arg("parameters"), py::arg("step") = "step",
             py::arg("params") = "params", py::arg("grads") = "grads")
        .def_property_readonly("arrays", &Plan::arrays)
        .def("unflatten", &Plan::unflatten, py::arg("leaves"))
        .def("flatten", &Plan::flatten, py::arg("other"), py::arg("call"), py::arg("argument"))
        .def("bind", &Plan::bind, py::arg("rule"), py::arg("states"))
        .def("set_hyperparameters", &Plan::set_hyperparameters, py::arg("decay"), py::arg("values"))
        .def_property("steps", &Plan::steps, &Plan::set_steps)
        .def("step", &Plan::step, py::arg("grads"), py::arg("rate"));
    module.def("update", &update, py::arg("call"), py::arg("rule"), py::arg("decay"),
               py::arg("values"), py::arg("t"), py::arg("param"), py::arg("grad"));
    module.def("map_arrays", &map_arrays, py::arg("function"), py::arg("structure"),
               py::arg("call"), py::arg("argument"));
    module.def("states", &state_names, py::arg("rule"));
    module.def("set_worth_sharing", &engine::set_worth_sharing, py::arg("elements"));
    module.def("set_tile_elements", &engine::set_tile_elements, py::arg("elements"));
}

}  // namespace schuss::bindings
