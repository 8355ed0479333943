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
    std::uint64_t before = busy.mark.load(std::memory_order_acquire);
    do {
        const std::uint64_t process = before >> 1;
        // A thread that forks during its call continues it in the child. Thread ids alone prove
        // nothing, since they are reused.
        const bool continues =
            process == now - 1 && process != 0 && busy.owner.load() == runtime::forking_thread();
        if (process == now || continues) throw_busy(call, name);
        if ((before & 1) != 0) {
            throw std::runtime_error(call + ": the process forked while another thread changed " +
                                     "this " + name + ", expected a fork before or after");
        }
    } while (!busy.mark.compare_exchange_weak(before, now << 1 | (changes ? 1 : 0),
                                              std::memory_order_acquire));
    busy.owner.store(std::this_thread::get_id(), std::memory_order_relaxed);
    if (busy.retired.load(std::memory_order_relaxed)) {
        busy.clear();
        throw_busy(call, name);
    }
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
