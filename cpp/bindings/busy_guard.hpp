// One call of an object at a time: any other one finds it busy and is refused.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>

namespace schuss::bindings {

namespace py = pybind11;

/// Who uses an object at the moment.
struct Busy {
    // 1 + the fork generation of the process, and whether the call makes changes other than a step
    // (the lowest bit); 0 if nobody uses it.
    std::atomic<std::uint64_t> mark = 0;
    std::atomic<std::thread::id> owner = {};
    std::atomic<bool> retired = false;  // another object has replaced it: every call is refused

    void clear() noexcept {
        owner.store({}, std::memory_order_relaxed);
        mark.store(0, std::memory_order_release);
    }
};

/// RuntimeError: another call is under way. name: what messages call the object.
[[noreturn]] void throw_busy(const std::string& call, const std::string& name);

/// Marks an object as busy. RuntimeError if it is already: another thread uses it, or user code
/// that a call on this thread runs.
///
/// After a fork, the mark of a thread that the child does not have is void. Steps were complete,
/// since a fork waits for them. Other changes may be half done, so the child refuses the object.
class BusyGuard {
  public:
    BusyGuard(Busy& busy, const std::string& call, const std::string& name, bool changes = false);
    ~BusyGuard() { busy_.clear(); }
    BusyGuard(const BusyGuard&) = delete;
    BusyGuard& operator=(const BusyGuard&) = delete;

  private:
    Busy& busy_;
};

/// A busy guard as a context manager of Python.
class PyBusyGuard {
  public:
    /// owner: the object that has the mark, kept alive.
    PyBusyGuard(py::object owner, Busy& busy, std::string call, std::string name, bool changes);
    void enter() { guard_ = std::make_unique<BusyGuard>(busy_, call_, name_, changes_); }
    void exit(const py::args&) { guard_.reset(); }

  private:
    py::object owner_;
    Busy& busy_;
    std::string call_, name_;
    bool changes_;
    std::unique_ptr<BusyGuard> guard_;
};

}  // namespace schuss::bindings
