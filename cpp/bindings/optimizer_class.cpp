// The optimizer of the core as a class of Python.

#include "bindings/optimizer.hpp"

#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/collectable.hpp"
#include "bindings/fast_call.hpp"
#include "bindings/free_threads.hpp"
#include "bindings/register.hpp"

namespace schuss::bindings {
namespace {

/// Makes a step with the arguments after `lr_version`.
void step_of_part(Optimizer& optimizer, const Arguments& arguments, Optimizer::StepCall call) {
    std::optional<engine::Statistics> statistics;
    if (!arguments[6].is_none()) {
        const auto [digits, power, first] =
            arguments[6].cast<std::tuple<double, int, std::int64_t>>();
        const auto none = std::numeric_limits<std::size_t>::max();
        statistics = {numbers::Wide(digits, -power),
                      first < 0 ? none : static_cast<std::size_t>(first)};
        call.statistics = &*statistics;
    }
    std::optional<Pieces> pieces;
    if (arguments.count() == 9 && !arguments[7].is_none()) {
        pieces.emplace(optimizer.pieces(arguments[7], arguments[8]));
        call.pieces = &*pieces;
    }
    optimizer.step(arguments[0], arguments[1], call);
}

PyObject* step(PyObject* self, PyObject* const* values, Py_ssize_t count) {
    return call_from_python([&]() -> py::object {
        const Arguments arguments("step", values, count, 2, 9);
        const ObjectLock lock(self);
        const Optimizer::StepCall call{
            .scale = arguments.number(2, 1),
            .expected_step = arguments.value<std::int64_t>(3, 0),
            .skip_nonfinite = arguments.value(4, false),
            .lr_version = arguments.value(5, std::optional<std::uint64_t>())};
        auto& optimizer = self_of<Optimizer>(self);
        if (count > 6) {
            step_of_part(optimizer, arguments, call);
        } else {
            optimizer.step(arguments[0], arguments[1], call);
        }
        return py::none();
    });
}

PyMethodDef step_method = fast_definition(
    "step", &step,
    "step($self, grads, lrs, scale=1.0, expected_step=0, skip_nonfinite=False, lr_version=None, "
    "statistics=None, ends=None, begin=None, /)\n--\n\n");

}  // namespace

void register_optimizer(py::module_& module) {
    using States = std::vector<std::pair<std::string, AuxArrays::List>>;
    py::class_<AuxArrays>(module, "AuxArrays", py::custom_type_setup(make_collectable<AuxArrays>))
        .def(py::init([](const py::dict& states, std::optional<AuxArrays::List> averages,
                         std::optional<AuxArrays::List> copies,
                         std::optional<AuxArrays::List> masters) {
                 States by_name;
                 for (const auto& [name, arrays] : states) {
                     by_name.emplace_back(name.cast<std::string>(), arrays.cast<AuxArrays::List>());
                 }
                 return AuxArrays{std::move(by_name), std::move(averages), std::move(copies),
                                  std::move(masters)};
             }),
             py::arg("states"), py::arg("averages") = py::none(), py::arg("copies") = py::none(),
             py::arg("masters") = py::none());
    py::class_<Optimizer> optimizer(module, "Optimizer",
                                    py::custom_type_setup(make_collectable<Optimizer>));
    optimizer
        .def(py::init<const std::string&, py::handle, const std::string&, const std::string&,
                      std::string, bool, const std::optional<std::vector<std::uint64_t>>&,
                      const std::string&>(),
             py::arg("call"), py::arg("parameters"), py::arg("step") = "step",
             py::arg("params") = "params", py::arg("grads") = "grads",
             py::arg("round_at_random") = false, py::arg("first") = py::none(),
             py::arg("rows") = "none")
        .def_property_readonly("tree", locked(&Optimizer::tree))
        .def_property_readonly("users_arrays", locked(&Optimizer::users_arrays))
        .def_property_readonly("users_copies", locked(&Optimizer::users_copies))
        .def_property_readonly("arrays", locked(&Optimizer::arrays))
        .def_property_readonly("copies", locked(&Optimizer::copies))
        .def_property_readonly("values", locked(&Optimizer::values))
        .def("hold_groups", locked(&Optimizer::hold_groups), py::arg("groups"))
        .def("hold_copies", locked(&Optimizer::hold_copies), py::arg("copies"), py::arg("call"))
        .def("configure", locked(&Optimizer::configure), py::arg("formulas"), py::arg("members"),
             py::arg("options"), py::arg("arrays") = py::none(),
             py::arg("frozen") = std::vector<std::size_t>())
        .def("busy", &Optimizer::busy, py::arg("call"), py::arg("changes") = false)
        .def("retire", locked(&Optimizer::retire))
        .def_property("steps", locked(&Optimizer::steps), locked(&Optimizer::set_steps))
        .def_property("rested", locked(&Optimizer::rested), locked(&Optimizer::set_rested))
        .def_property("skipped", locked(&Optimizer::skipped), locked(&Optimizer::set_skipped))
        .def_property_readonly("last", locked(&Optimizer::last))
        .def_property_readonly("norm_parts", locked(&Optimizer::norm_parts))
        .def("set_norms", locked(&Optimizer::set_norms), py::arg("parts"))
        .def("keep_last_of", locked(&Optimizer::keep_last_of), py::arg("other"))
        .def_property_readonly("last_lrs", locked(&Optimizer::last_lrs))
        .def_property_readonly("lr_version", locked(&Optimizer::lr_version))
        .def("forget_lrs", locked(&Optimizer::forget_lrs))
        .def("check_lrs", locked(&Optimizer::check_lrs), py::arg("lrs"))
        .def_property_readonly("pending", locked(&Optimizer::pending))
        .def("flush", locked(&Optimizer::flush))
        .def("rows", locked(&Optimizer::rows), py::arg("indices"), py::arg("call"))
        .def("check_source", locked(&Optimizer::check_source), py::arg("grads"))
        .def("read", locked(&Optimizer::read), py::arg("grads"), py::arg("call"))
        .def("check_params", locked(&Optimizer::check_params), py::arg("call"))
        .def("hold_sums", locked(&Optimizer::hold_sums), py::arg("sums"))
        .def("take_sums", locked(&Optimizer::take_sums), py::arg("sums"), py::arg("other"))
        .def("accumulate", locked(&Optimizer::accumulate), py::arg("grads"), py::arg("scale"),
             py::arg("overwrite_grads"), py::arg("new_sums"))
        .def_property("accumulated", locked(&Optimizer::accumulated),
                      locked(&Optimizer::set_accumulated))
        .def("clear_accumulated", locked(&Optimizer::clear_accumulated))
        .def_property_readonly("has_sums", locked(&Optimizer::has_sums))
        .def_property("without_sum", locked(&Optimizer::without_sum),
                      locked(&Optimizer::set_without_sum))
        .def_property_readonly("sums", locked(&Optimizer::sums))
        .def("average", locked(&Optimizer::average))
        .def_property("average_weights", locked(&Optimizer::average_weights),
                      locked(&Optimizer::set_average_weights))
        .def("check_copies", locked(&Optimizer::check_copies), py::arg("call"));
    add_method(optimizer, step_method);
}

}  // namespace schuss::bindings
