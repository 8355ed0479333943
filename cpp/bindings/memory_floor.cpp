// The lower bounds of the benchmarks: loops that move the memory of a step and only add.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/register.hpp"
#include "engine/plan.hpp"
#include "engine/prefetch.hpp"
#include "rules/registry.hpp"
#include "runtime/cpu.hpp"
#include "runtime/subnormals.hpp"
#include "runtime/thread_pool.hpp"
#include "sweep/dispatch.hpp"

namespace schuss::bindings {
namespace {

/// An array in C order of float32 or float64. TypeError or ValueError for others.
ArrayView contiguous(py::handle object, const Name& name) {
    ArrayView array(object, name);
    compute_type_of(array, name);
    if ((array.array().flags() & py::array::c_style) == 0) {
        throw py::value_error(name.call + ": expected contiguous arrays");
    }
    return array;
}

/// Adds grad to param and to each state by the kernel of the level in use, without plan and tiles.
class Additions {
  public:
    Additions(const std::string& call, py::handle param, py::handle grad, const py::args& states)
        : param_(contiguous(param, {call, "param"})), grad_(contiguous(grad, {call, "grad"})) {
        check_writable(param_, {call, "param"});
        operands_ = {param_.data(), grad_.data()};
        for (const py::handle state : states) {
            states_.push_back(contiguous(state, {call, "state"}));
            check_like(states_.back(), {call, "state"}, param_, "param");
            operands_.push_back(states_.back().data());
        }
        const std::size_t rule = rules::find_rule("memory_floor_" + std::to_string(states_.size()));
        dtype_ = compute_type_of(param_, {call, "param"}).dtype;
        item_size_ = param_.itemsize();
        kernel_ = sweep::level().rules[rule].of(rules::Decay::decoupled, {dtype_, dtype_, dtype_});
    }

    const ArrayView& param() const { return param_; }
    const ArrayView& grad() const { return grad_; }
    std::size_t arrays() const { return operands_.size(); }

    /// Adds `count` elements of grad from `grad_begin` on to those from `begin` on.
    void add(std::size_t begin, std::size_t grad_begin, std::size_t count, bool prefetches) const {
        std::array<std::byte*, 4> operands{};
        for (std::size_t i = 0; i < operands_.size(); ++i) {
            operands[i] = operands_[i] + (i == 1 ? grad_begin : begin) * item_size_;
        }
        kernel_(operands.data(), count, coefficients_.as(dtype_), nullptr, prefetches, nullptr);
    }

    /// Loads elements into the cache.
    [[gnu::always_inline]] void prefetch(std::size_t begin, std::size_t count) const {
        for (std::size_t i = 0; i < operands_.size(); ++i) {
            if (i == 1) continue;  // the processor foresees an array in order
            engine::prefetch(operands_[i] + begin * item_size_, count * item_size_);
        }
    }

  private:
    ArrayView param_, grad_;
    std::vector<ArrayView> states_;
    std::vector<std::byte*> operands_;
    numbers::DType dtype_;
    std::size_t item_size_;
    sweep::Kernel kernel_;
    engine::Coefficients coefficients_;
};

/// Runs task(thread) once on each thread. No thread waits for another, so a step on the same number
/// of threads cannot be faster.
template <typename Task>
void on_all(const std::string& call, std::size_t threads, Task task) {
    if (threads == 0) throw py::value_error(call + ": threads is 0, expected at least 1");
    const auto run = [](void* context, std::size_t thread, std::size_t) noexcept {
        const runtime::SubnormalsAreZero mode;
        (*static_cast<Task*>(context))(thread);
    };
    if (!runtime::run_concurrently({run, &task, threads, true})) {
        throw std::runtime_error(call + ": the pool cannot start that many threads");
    }
}

/// Additions to whole arrays, `repeats` times. Each thread has an equal part.
void memory_floor(int repeats, std::size_t threads, py::handle param, py::handle grad,
                  const py::args& states) {
    const std::string call = "memory_floor";
    const Additions additions(call, param, grad, states);
    check_like(additions.grad(), {call, "grad"}, additions.param(), "param");
    const auto size = additions.param().size();
    const auto item_size = additions.param().itemsize();
    // Parts end at cache lines: two threads must not write to the same line.
    const std::size_t line = engine::cache_line / item_size;
    const bool prefetches = size * item_size * additions.arrays() > runtime::cache_size();
    const std::size_t part = (size / std::max<std::size_t>(threads, 1) + line) / line * line;
    on_all(call, threads, [&](std::size_t thread) {
        const std::size_t begin = std::min(size, thread * part);
        for (int i = 0; i < repeats; ++i) {
            additions.add(begin, begin, std::min(size - begin, part), prefetches);
        }
    });
}

/// Additions to some rows; grad has a row for each. Each thread has an equal part of them.
void memory_floor_of_rows(std::size_t threads, const py::array_t<std::int64_t>& rows,
                          py::handle param, py::handle grad, const py::args& states) {
    constexpr std::size_t ahead = 8;  // rows that are prefetched
    const std::string call = "memory_floor_of_rows";
    const Additions additions(call, param, grad, states);
    const auto indices = rows.unchecked<1>();
    const auto count = static_cast<std::size_t>(indices.shape(0));
    const auto length = static_cast<std::int64_t>(additions.param().shape().at(0));
    const std::size_t row = additions.param().size() / static_cast<std::size_t>(length);
    if (additions.grad().size() != count * row) {
        throw py::value_error(call + ": expected a row of grad for each of rows");
    }
    for (std::size_t i = 0; i < count; ++i) {
        if (indices(i) < 0 || indices(i) >= length) throw py::index_error(call + ": rows");
    }
    const auto begin_of = [&](std::size_t i) { return static_cast<std::size_t>(indices(i)) * row; };
    on_all(call, threads, [&](std::size_t thread) {
        const std::size_t end = count * (thread + 1) / threads;
        for (std::size_t i = count * thread / threads; i < end; ++i) {
            if (i + ahead < end) additions.prefetch(begin_of(i + ahead), row);
            additions.add(begin_of(i), i * row, row, false);
        }
    });
}

}  // namespace

void register_memory_floor(py::module_& module) {
    module.def("memory_floor", &memory_floor, py::arg("repeats"), py::arg("threads"),
               py::arg("param"), py::arg("grad"));
    module.def("memory_floor_of_rows", &memory_floor_of_rows, py::arg("threads"), py::arg("rows"),
               py::arg("param"), py::arg("grad"));
}

}  // namespace schuss::bindings
