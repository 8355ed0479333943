// Kernels treat subnormal numbers as zero: otherwise a moment that decays to zero would slow
// training down by the hundredfold cost of subnormal arithmetic.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#error "schuss runs on x86-64 and 64-bit Arm"
#endif

namespace schuss::runtime {

/// The floating-point mode of this thread: round to nearest, no traps, and how it treats subnormal
/// operands and results. The caller's mode is restored when it is destroyed.
class FloatingPointMode {
  public:
    FloatingPointMode(const FloatingPointMode&) = delete;
    FloatingPointMode& operator=(const FloatingPointMode&) = delete;

  protected:
#if defined(__aarch64__)
    using Mode = std::uint64_t;
    static constexpr Mode kernel_mode = Mode{1} << 24;  // FPCR: FZ
    static constexpr Mode default_mode = 0;
    static Mode mode() {
        Mode value;
        __asm__ volatile("mrs %0, fpcr" : "=r"(value));
        return value;
    }
    static void set_mode(Mode value) { __asm__ volatile("msr fpcr, %0" : : "r"(value) : "memory"); }
#else
    using Mode = unsigned;
    static constexpr Mode kernel_mode = 0x1f80 | 0x8000 | 0x0040;  // MXCSR: all masked, FTZ, DAZ
    static constexpr Mode default_mode = 0x1f80;
    static Mode mode() { return _mm_getcsr(); }
    static void set_mode(Mode value) { _mm_setcsr(value); }
#endif

    explicit FloatingPointMode(Mode own) : callers_(mode()) { set_mode(own); }
    ~FloatingPointMode() { set_mode(callers_); }

    friend void use_default_mode();

  private:
    Mode callers_;
};

/// The mode of kernels.
class SubnormalsAreZero : FloatingPointMode {
  public:
    SubnormalsAreZero() : FloatingPointMode(kernel_mode) {}
};

/// The mode that programs start with, where a library may have changed it.
class SubnormalsAreKept : FloatingPointMode {
  public:
    SubnormalsAreKept() : FloatingPointMode(default_mode) {}
};

/// Sets this thread's mode to the one that programs start with.
inline void use_default_mode() {
    FloatingPointMode::set_mode(FloatingPointMode::default_mode);
}

}  // namespace schuss::runtime
