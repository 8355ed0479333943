// Work without the interpreter's lock, so that Python's other threads run meanwhile.
#pragma once

#include <Python.h>

#include <chrono>
#include <thread>

namespace schuss::bindings {

class ReleaseGil {
  public:
    ReleaseGil() : state_(PyEval_SaveThread()) {}

    /// If the interpreter has ended meanwhile, it ends this thread (a daemon) by unwinding its
    /// stack. That must not go on: objects would be let go of without the lock. So the thread
    /// sleeps until the process ends, as newer interpreters have it.
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

}  // namespace schuss::bindings
