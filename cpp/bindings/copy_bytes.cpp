// Copies many arrays at once, on the threads of a step.

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "bindings/array_view.hpp"
#include "bindings/gil.hpp"
#include "bindings/register.hpp"
#include "runtime/thread_pool.hpp"

namespace schuss::bindings {
namespace {

struct Copy {
    std::byte* to;
    const std::byte* from;
    std::size_t size;
};

/// Copies in the order in which they were added, divided into tasks of about equal size.
class Copies {
  public:
    void add(std::byte* to, const std::byte* from, std::size_t size) {
        for (std::size_t done = 0, part; done < size; done += part) {
            if (total_ % task_size == 0 || tasks_.empty()) tasks_.push_back(copies_.size());
            part = std::min(size - done, task_size - total_ % task_size);
            copies_.push_back({to + done, from + done, part});
            total_ += part;
        }
    }

    void run() {
        const auto run_task = [](void* context, std::size_t task, std::size_t) noexcept {
            static_cast<const Copies*>(context)->run_task(task);
        };
        run_without_gil(total_, [&]() noexcept {
            runtime::parallel_for({run_task, this, tasks_.size(), tasks_.size() > 1},
                                  runtime::threads());
        });
    }

  private:
    static constexpr std::size_t task_size = std::size_t{1} << 20;

    void run_task(std::size_t task) const {
        const std::size_t end = task + 1 < tasks_.size() ? tasks_[task + 1] : copies_.size();
        for (std::size_t i = tasks_[task]; i < end; ++i) {
            std::memcpy(copies_[i].to, copies_[i].from, copies_[i].size);
        }
    }

    std::vector<Copy> copies_;
    std::vector<std::size_t> tasks_;  // the first copy of each
    std::size_t total_ = 0;           // bytes
};

/// Copies the bytes of each source to its target. All are C-contiguous, and share no memory; all
/// checks come before the first write.
void copy_bytes(const py::list& targets, const py::list& sources) {
    const Name target_name{"copy_bytes", "targets"}, source_name{"copy_bytes", "sources"};
    std::vector<ArrayView> views;  // keep the memory
    views.reserve(2 * targets.size());
    Copies copies;
    if (targets.size() != sources.size()) {
        throw py::value_error("copy_bytes: expected a source for each target");
    }
    for (std::size_t i = 0; i < targets.size(); ++i) {
        const ArrayView& to = views.emplace_back(targets[i], target_name);
        const ArrayView& from = views.emplace_back(sources[i], source_name);
        const std::size_t size = to.size() * to.itemsize();
        if ((to.array().flags() & from.array().flags() & py::array::c_style) == 0 ||
            !to.writeable() || size != from.size() * from.itemsize()) {
            throw py::value_error("copy_bytes: expected contiguous arrays of the same sizes");
        }
        copies.add(to.data(), from.data(), size);
    }
    for (const ArrayView& view : views) check_has_its_memory(view, target_name);
    copies.run();
}

}  // namespace

void register_copy_bytes(py::module_& module) {
    module.def("copy_bytes", &copy_bytes, py::arg("targets"), py::arg("sources"));
}

}  // namespace schuss::bindings
