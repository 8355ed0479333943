// Work without the interpreter's lock, so that Python's other threads run meanwhile.
#pragma once

#include <Python.h>
#include <unistd.h>

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
            for (;;) ::pause();
        }
    }

    OthersMayRun(const OthersMayRun&) = delete;
    OthersMayRun& operator=(const OthersMayRun&) = delete;

  private:
    PyThreadState* state_;
};

}  // namespace schuss::bindings
