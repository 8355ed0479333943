#include "bindings/busy_guard.hpp"

#include <stdexcept>
#include <utility>

#include "bindings/register.hpp"
#include "runtime/fork.hpp"

namespace schuss::bindings {

void throw_busy(const std::string& call, const std::string& name) {
    throw std::runtime_error(call + ": another call of " + name +
                             " is under way, expected one at a time");
}

BusyGuard::BusyGuard(Busy& busy, const std::string& call, const std::string& name, bool changes)
    : busy_(busy) {
    const std::uint64_t now = runtime::fork_generation() + 1;
    // A thread that forks during its call continues it in the child. Thread ids alone prove
    // nothing, since they are reused.
    const bool continues =
        busy.process == now - 1 && busy.process != 0 && busy.owner == runtime::forking_thread();
    if (busy.process == now || continues || busy.retired) throw_busy(call, name);
    if (busy.process != 0 && busy.changes) {
        throw std::runtime_error(call + ": the process forked while another thread changed this " +
                                 name + ", expected a fork before or after");
    }
    busy = {now, std::this_thread::get_id(), changes, false};
}

PyBusyGuard::PyBusyGuard(py::object owner, Busy& busy, std::string call, std::string name,
                         bool changes)
    : owner_(std::move(owner)),
      busy_(busy),
      call_(std::move(call)),
      name_(std::move(name)),
      changes_(changes) {}

void register_busy_guard(py::module_& module) {
    py::class_<PyBusyGuard>(module, "BusyGuard")
        .def("__enter__", &PyBusyGuard::enter)
        .def("__exit__", &PyBusyGuard::exit);
}

}  // namespace schuss::bindings
