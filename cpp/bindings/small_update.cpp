// `schuss.kernels` on small arrays whose arguments need no conversion: the checks and the plan of
// any arrays take several times as long as such a step.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <optional>
#include <string_view>
#include <vector>

#include "bindings/array_view.hpp"
#include "bindings/fast_call.hpp"
#include "bindings/free_threads.hpp"
#include "bindings/gil.hpp"
#include "bindings/register.hpp"
#include "engine/formula.hpp"
#include "numbers/dtype.hpp"
#include "numbers/wide.hpp"
#include "rules/registry.hpp"
#include "runtime/subnormals.hpp"
#include "sweep/dispatch.hpp"

namespace schuss::bindings {
namespace {

using npy = py::detail::npy_api;

/// The arrays of an update.
struct Operands {
    std::array<std::byte*, rules::max_operands> data = {};
    std::size_t elements = 1;
    numbers::DType dtype = numbers::DType::float32;
};

/// The dtype that updates are computed in, if an array has it in native byte order.
std::optional<numbers::DType> computed(const py::array& array) {
    const py::dtype dtype = array.dtype();
    if (dtype.byteorder() != '=') return std::nullopt;
    if (dtype.num() == npy::NPY_FLOAT_) return numbers::DType::float32;
    if (dtype.num() == npy::NPY_DOUBLE_) return numbers::DType::float64;
    return std::nullopt;
}

/// The arrays, if they are contiguous in C order, have one shape and dtype, share no memory, and
/// are so small that the step keeps the GIL.
std::optional<Operands> operands_in(const py::tuple& arrays) {
    Operands operands;
    if (arrays.size() > operands.data.size()) return std::nullopt;
    for (const py::handle each : arrays) {
        if (!is_plain_array(each)) return std::nullopt;
    }
    const auto array = [&arrays](std::size_t k) {
        return py::reinterpret_borrow<py::array>(PyTuple_GET_ITEM(arrays.ptr(), k));
    };
    const py::array parameter = array(rules::parameter_operand);
    const std::optional<numbers::DType> dtype = computed(parameter);
    if (!dtype) return std::nullopt;
    operands.dtype = *dtype;
    const auto& first = fields(parameter);
    for (int i = 0; i < first.nd; ++i) {
        operands.elements *= static_cast<std::size_t>(first.dimensions[i]);
        if (operands.elements >= gil_release_threshold) return std::nullopt;
    }
    if (operands.elements == 0) return std::nullopt;
    const std::size_t bytes = operands.elements * numbers::size_of(*dtype);
    for (std::size_t k = 0; k < arrays.size(); ++k) {
        const auto& f = fields(array(k));
        int flags = npy::NPY_ARRAY_C_CONTIGUOUS_ | npy::NPY_ARRAY_ALIGNED_;
        if (k != rules::gradient_operand) flags |= npy::NPY_ARRAY_WRITEABLE_;
        const bool is_like = f.descr == first.descr && f.nd == first.nd &&
                             std::equal(f.dimensions, f.dimensions + f.nd, first.dimensions);
        if (!is_like || (f.flags & flags) != flags) return std::nullopt;
        operands.data[k] = reinterpret_cast<std::byte*>(f.data);
        for (std::size_t other = 0; other < k; ++other) {
            const bool is_apart = operands.data[k] + bytes <= operands.data[other] ||
                                  operands.data[other] + bytes <= operands.data[k];
            if (!is_apart) return std::nullopt;
        }
    }
    return operands;
}

/// Python's names of the hyperparameters of each rule. Never destroyed; complete before any call.
auto& names = *new std::vector<std::vector<PyObject*>>;

/// The value of a hyperparameter if it is a float from 0 to below a limit.
std::optional<double> number_below(double limit, const py::dict& values, PyObject* name) {
    const py::object value = item_of(values, name);
    if (!value || PyFloat_CheckExact(value.ptr()) == 0) return std::nullopt;
    const double number = PyFloat_AS_DOUBLE(value.ptr());
    return number >= 0 && number < limit ? std::optional(number) : std::nullopt;
}

/// The number of the step if it is a valid integer. None stands for 1.
std::optional<std::int64_t> count_of(py::handle step) {
    if (step.is_none()) return 1;
    if (PyLong_CheckExact(step.ptr()) == 0) return std::nullopt;
    int overflow = 0;
    const std::int64_t count = PyLong_AsLongLongAndOverflow(step.ptr(), &overflow);
    return overflow == 0 && count >= 1 && count <= rules::max_steps ? std::optional(count)
                                                                    : std::nullopt;
}

/// A finite float from `least` on; nullopt for everything else.
std::optional<double> finite(py::handle number, double least) {
    if (PyFloat_CheckExact(number.ptr()) == 0) return std::nullopt;
    const double value = PyFloat_AS_DOUBLE(number.ptr());
    return value >= least && std::isfinite(value) ? std::optional(value) : std::nullopt;
}

/// The rule with its hyperparameters, if all of them are ordinary.
std::optional<engine::Formula> formula_of(std::string_view name, const py::dict& values,
                                          bool corrects_bias, bool is_decoupled) {
    static constinit Interned weight_decay_name("weight_decay");
    const std::size_t rule = rules::find_rule(name);
    const auto& hyperparameters = rules::registry()[rule].hyperparameters;
    std::array<double, std::size(rules::Names{}.at)> numbers;
    for (std::size_t i = 0; i < hyperparameters.size(); ++i) {
        // Every check accepts such a learning rate, and such other hyperparameters.
        const double limit = i == 0 ? std::numeric_limits<double>::max() : 1;
        const std::optional<double> number = hyperparameters[i] == "bias_correction"
                                                 ? corrects_bias
                                                 : number_below(limit, values, names[rule][i]);
        if (!number) return std::nullopt;
        numbers[i] = *number;
    }
    const std::optional<double> weight_decay = number_below(1, values, weight_decay_name.get());
    if (!weight_decay) return std::nullopt;
    const auto decay = is_decoupled ? rules::Decay::decoupled : rules::Decay::coupled;
    const auto end = numbers.begin() + static_cast<std::ptrdiff_t>(hyperparameters.size());
    return engine::Formula(
        name, numbers[0], {numbers.begin() + 1, end},
        {.decay = decay, .weight_decay = *weight_decay, .bounds = {}, .row_rule = {}});
}

/// Makes a step and returns whether it did: all arguments must be ordinary, so that none needs a
/// conversion, and no check refuses any. Otherwise nothing is changed or raised.
bool update_small(const Arguments& arguments) {
    const py::handle step = arguments[3];
    const auto arrays = py::reinterpret_borrow<py::tuple>(arguments[6]);
    const std::optional<std::int64_t> t = count_of(step);
    const std::optional<double> scale = finite(arguments[4], -engine::no_limit);
    const std::optional<double> clip_value =
        arguments[5].is_none() ? engine::no_limit : finite(arguments[5], 0);
    if (!t || !scale || !clip_value) return false;
    const std::optional<engine::Formula> formula = formula_of(
        arguments[0].cast<std::string_view>(), py::reinterpret_borrow<py::dict>(arguments[1]),
        !step.is_none(), arguments[2].ptr() == Py_True);
    if (!formula || arrays.size() != rules::first_state_operand + formula->rule().states.size()) {
        return false;
    }
    const std::optional<Operands> operands = operands_in(arrays);
    if (!operands) return false;
    engine::Update update = formula->update(*t, *clip_value);
    if (formula->first_misfit(update, *clip_value, operands->dtype)) return false;
    update.set_scale(numbers::Wide(*scale));
    const numbers::DType dtype = operands->dtype;
    const sweep::Call call = update.call({dtype, dtype, dtype}, false);
    const runtime::SubnormalsAreZero mode;
    sweep::level().run(call, operands->data.data(), operands->elements, nullptr);
    return true;
}

PyObject* update_small_from_python(PyObject*, PyObject* const* values, Py_ssize_t count) {
    return call_from_python([&]() -> py::object {
        return py::bool_(update_small(Arguments("update_small", values, count, 7, 7)));
    });
}

PyMethodDef definition = fast_definition(
    "update_small", &update_small_from_python,
    "update_small(rule, values, decoupled, step, scale, clip_value, arrays, /)\n--\n\n");

}  // namespace

void register_small_update(py::module_& module) {
    for (const rules::RuleInfo& info : rules::registry()) {
        std::vector<PyObject*>& own = names.emplace_back();
        for (const std::string_view name : info.hyperparameters) {
            own.push_back(PyUnicode_InternFromString(name.data()));
        }
    }
    add_function(module, definition);
}

}  // namespace schuss::bindings
