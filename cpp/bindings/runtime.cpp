// The instruction set, the threads, OpenBLAS, and the floating-point mode of a step.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>

#include "bindings/register.hpp"
#include "data/sharing.hpp"
#include "engine/sharing.hpp"
#include "engine/tiles.hpp"
#include "runtime/cpu.hpp"
#include "runtime/openblas.hpp"
#include "runtime/subnormals.hpp"
#include "runtime/thread_pool.hpp"
#include "sweep/dispatch.hpp"

namespace schuss::bindings {
namespace {

namespace py = pybind11;

/// The floating-point mode of a step as a context manager, for the NumPy reference.
class SubnormalsAreZero {
  public:
    void enter() { mode_.emplace(); }
    void exit(const py::args&) { mode_.reset(); }

  private:
    std::optional<runtime::SubnormalsAreZero> mode_;
};

}  // namespace

// For threadpoolctl, which searches the loaded libraries of a process for such functions.
extern "C" PYBIND11_EXPORT int schuss_get_num_threads() {
    return static_cast<int>(runtime::threads());
}
extern "C" PYBIND11_EXPORT void schuss_set_num_threads(int threads) {
    constexpr int max = runtime::max_threads;
    runtime::set_threads(static_cast<std::size_t>(std::clamp(threads, 1, max)));
}

void register_runtime(py::module_& module) {
    module.def("simd", [] { return std::string(sweep::level().name); });
    module.def("set_simd", &sweep::use_level, py::arg("level"));
    module.def("available_simd", [] {
        std::vector<std::string> names;
        for (const sweep::Level* level : sweep::available_levels()) names.push_back(level->name);
        return names;
    });
    module.def("multiply_for_roots", &sweep::multiply_for_roots, py::arg("multiply"));
    runtime::prepare_for_fork();
    module.def("workers", &runtime::workers);
    module.attr("max_threads") = runtime::max_threads;
    module.def("num_threads", &runtime::threads);
    module.def("set_num_threads", &runtime::set_threads, py::arg("threads"));
    module.def("set_parallel_threshold", &engine::set_parallel_threshold, py::arg("nanoseconds"));
    module.def("set_sharing_threshold", &data::set_sharing_threshold, py::arg("bytes"));
    module.def("set_cache_size", &runtime::set_cache_size, py::arg("bytes"));
    module.def("set_tile_elements", &engine::set_tile_elements, py::arg("elements"));
    module.def("find_openblas", [] {
        py::list found;
        for (const runtime::OpenBlas& library : runtime::find_openblas()) {
            found.append(
                py::make_tuple(library.path, library.version, library.refusal, library.served));
        }
        return found;
    });
    module.def("serve_openblas", &runtime::serve_openblas, py::arg("path"), py::arg("serve"));
    py::class_<SubnormalsAreZero>(module, "subnormals_are_zero")
        .def(py::init<>())
        .def("__enter__", &SubnormalsAreZero::enter)
        .def("__exit__", &SubnormalsAreZero::exit);
}

}  // namespace schuss::bindings
