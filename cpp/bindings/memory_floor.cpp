// The lower bound of the benchmarks: a loop that moves the memory of a step and only adds.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/register.hpp"
#include "engine/plan.hpp"
#include "rules/registry.hpp"
#include "runtime/cpu.hpp"
#include "runtime/subnormals.hpp"
#include "runtime/thread_pool.hpp"
#include "sweep/dispatch.hpp"

namespace schuss::bindings {
namespace {

/// Adds grad to param and to each state, `repeats` times, by the kernel of the level in use,
/// without plan and tiles. Each thread has an equal part and never waits for another, so a step on
/// the same number of threads cannot be faster.
void memory_floor(int repeats, std::size_t threads, py::handle param, py::handle grad,
                  const py::args& states) {
    const std::string call = "memory_floor";
    if (threads == 0) throw py::value_error(call + ": threads is 0, expected at least 1");
    std::vector<ArrayView> arrays = {ArrayView(param, {call, "param"}),
                                     ArrayView(grad, {call, "grad"})};
    for (const py::handle state : states) arrays.emplace_back(state, Name{call, "state"});
    check_writable(arrays[0], {call, "param"});
    std::vector<std::byte*> operands;
    for (const ArrayView& array : arrays) {
        check_like(array, {call, "array"}, arrays[0], "param");
        if ((array.array().flags() & py::array::c_style) == 0) {
            throw py::value_error(call + ": expected contiguous arrays");
        }
        operands.push_back(array.data());
    }
    const std::size_t rule = rules::find_rule("memory_floor_" + std::to_string(states.size()));
    const numbers::DType dtype = compute_type_of(arrays[0], {call, "param"}).dtype;
    const auto kernel =
        sweep::level().rules[rule].of(rules::Decay::decoupled, {dtype, dtype, dtype});
    const engine::Coefficients coefficients;
    const void* const values = coefficients.as(dtype);
    const auto size = arrays[0].size();
    const auto item_size = arrays[0].itemsize();
    // Parts end at cache lines: two threads must not write to the same line.
    const std::size_t line = engine::cache_line / item_size;
    const bool prefetches = size * item_size * arrays.size() > runtime::cache_size();
    const std::size_t part = (size / threads + line) / line * line;
    auto add = [&](std::size_t task) {
        const runtime::SubnormalsAreZero mode;
        const std::size_t begin = std::min(size, task * part);
        std::vector<std::byte*> operands_of_part = operands;
        for (std::byte*& operand : operands_of_part) {
            operand += begin * item_size;
        }
        for (int i = 0; i < repeats; ++i) {
            kernel(operands_of_part.data(), std::min(size - begin, part), values, nullptr,
                   prefetches, nullptr);
        }
    };
    using Add = decltype(add);
    const auto run = [](void* context, std::size_t task, std::size_t) noexcept {
        (*static_cast<Add*>(context))(task);
    };
    if (!runtime::run_concurrently({run, &add, threads, true})) {
        throw std::runtime_error(call + ": the pool cannot start that many threads");
    }
}

}  // namespace

void register_memory_floor(py::module_& module) {
    module.def("memory_floor", &memory_floor, py::arg("repeats"), py::arg("threads"),
               py::arg("param"), py::arg("grad"));
}

}  // namespace schuss::bindings
