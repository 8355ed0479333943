#include "runtime/cpu.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace schuss::runtime {

#if defined(__x86_64__)

namespace {

struct Registers {
    std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(std::uint32_t leaf) {
    Registers r;
    __get_cpuid_count(leaf, 0, &r.eax, &r.ebx, &r.ecx, &r.edx);  // all zero past the last leaf
    return r;
}

/// XCR0: the register states that the operating system saves.
std::uint64_t saved_states() {
    std::uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return std::uint64_t{high} << 32 | low;
}

}  // namespace

std::uint64_t cpu_features() {
    constexpr std::uint32_t osxsave = 1u << 27;
    const std::uint64_t saved = (cpuid(1).ecx & osxsave) != 0 ? saved_states() : 0;
    std::uint64_t features = 0;
#define SCHUSS_FEATURE(name, macro, leaf, reg, bit, state)                     \
    if ((cpuid(leaf).reg >> (bit) & 1) != 0 && (saved & (state)) == (state)) { \
        features |= std::uint64_t{1} << unsigned(Feature::name);               \
    }
#include "runtime/features.def"
    return features;
}

bool has_slow_divider() {
    const Registers maker = cpuid(0);  // "Genu" "ineI" "ntel"
    return maker.ebx == 0x756e6547 && maker.edx == 0x49656e69 && maker.ecx == 0x6c65746e;
}

#else

/// Other processors have the baseline only, which the compiler's target guarantees.
std::uint64_t cpu_features() {
    return ~std::uint64_t{0};
}

bool has_slow_divider() {
    return false;
}

#endif

}  // namespace schuss::runtime
