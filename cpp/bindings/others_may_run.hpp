// Work without the interpreter's lock, so that Python's other threads run meanwhile.
#pragma once

#include <Python.h>

#include <chrono>
#include <thread>

namespace schuss::bindings {

class OthersMayRun {
  public:
    OthersMayRun() : state_(PyEval_SaveThread()) {}

    /// If the interpreter has ended meanwhile, it ends this thread (a daemon) by unwinding its
    /// stack. That must not go on: objects would be let go of without the lock. So the thread
    /// sleeps until the process ends, as newer interpreters have it.
    ~OthersMayRun() {
        try {
            PyEval_RestoreThread(state_);
        } catch (...) {
            for (;;) std::this_thread::sleep_for(std::chrono::hours(24));
        }
    }

    OthersMayRun(const OthersMayRun&) = delete;
    OthersMayRun& operator=(const OthersMayRun&) = delete;

  private:
    PyThreadState* state_;
};

}  // namespace schuss::bindings
