// Work without the GIL, so that other Python threads run meanwhile.
#pragma once

#include <Python.h>

#include <chrono>
#include <cstddef>
#include <optional>
#include <thread>

#include "runtime/fork.hpp"

namespace schuss::bindings {

/// Releases the GIL for its lifetime.
class ReleaseGil {
  public:
    ReleaseGil() : state_(PyEval_SaveThread()) {}

    /// If the interpreter was finalized meanwhile, PyEval_RestoreThread ends this (daemon) thread
    /// by unwinding its stack, which would drop references without the GIL. So the thread sleeps
    /// until the process ends, as newer interpreters let it.
    ~ReleaseGil() {
        try {
            PyEval_RestoreThread(state_);
        } catch (...) {
            for (;;) std::this_thread::sleep_for(std::chrono::hours(24));
        }
    }

    ReleaseGil(const ReleaseGil&) = delete;
    ReleaseGil& operator=(const ReleaseGil&) = delete;

  private:
    PyThreadState* state_;
};

/// A step of fewer elements ends before another thread could use the interpreter. Without a GIL,
/// other threads always run.
#ifdef Py_GIL_DISABLED
inline constexpr std::size_t gil_release_threshold = 0;
#else
inline constexpr std::size_t gil_release_threshold = std::size_t{1} << 14;
#endif

/// Releases the GIL for its lifetime, if work on this many elements deserves it.
class ReleaseGilFor {
  public:
    explicit ReleaseGilFor(std::size_t elements) {
        if (elements >= gil_release_threshold) released_.emplace();
    }

  private:
    std::optional<ReleaseGil> released_;
};

/// Does work on this many elements that uses no Python. A child process finds it done.
template <class Work>
void run_without_gil(std::size_t elements, const Work& work) {
    if (elements < gil_release_threshold) return work();
    const ReleaseGil released;
    const runtime::ForkGuard no_fork;
    work();
}

/// Whether Python has more threads than this one.
inline bool has_other_threads() {
#ifdef Py_GIL_DISABLED
    return true;  // they may come and go meanwhile
#else
    return PyThreadState_Next(PyInterpreterState_ThreadHead(PyInterpreterState_Get())) != nullptr;
#endif
}

}  // namespace schuss::bindings
