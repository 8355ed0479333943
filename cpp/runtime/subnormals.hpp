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

/// Sets this thread's floating-point mode (round to nearest, no traps, subnormal operands and
/// results are zero), and restores the caller's mode when it is destroyed.
class SubnormalsAreZero {
  public:
    SubnormalsAreZero() : callers_(mode()) { set_mode(kernel_mode); }
    ~SubnormalsAreZero() { set_mode(callers_); }
    SubnormalsAreZero(const SubnormalsAreZero&) = delete;
    SubnormalsAreZero& operator=(const SubnormalsAreZero&) = delete;

  private:
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

    Mode callers_;

    friend void use_default_mode();
};

/// Sets this thread's mode to the one that programs start with.
inline void use_default_mode() {
    SubnormalsAreZero::set_mode(SubnormalsAreZero::default_mode);
}

}  // namespace schuss::runtime
