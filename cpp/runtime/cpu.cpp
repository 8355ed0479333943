#include "runtime/cpu.hpp"

#include <algorithm>
#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace schuss::runtime {
namespace {

constexpr std::size_t largest_cache_size = std::size_t{16} << 20;

}  // namespace

#if defined(__x86_64__)

namespace {

struct Registers {
    std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(std::uint32_t leaf, std::uint32_t subleaf = 0) {
    Registers r;
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx,
                      &r.edx);  // all zero past the last leaf
    return r;
}

/// XCR0: the register states that the operating system saves.
std::uint64_t saved_states() {
    std::uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return std::uint64_t{high} << 32 | low;
}

/// The size of the largest cache that holds data; 0 if the processor does not tell. Intel describes
/// its caches in leaf 4, AMD in leaf 0x8000001d, in the same form. (glibc's sysconf counts the
/// caches of a whole socket on some virtual machines.)
std::size_t last_level_cache() {
    constexpr std::uint32_t none = 0, instructions = 2;
    std::size_t largest = 0;
    for (const std::uint32_t leaf : {4u, 0x8000001du}) {
        for (std::uint32_t i = 0;; ++i) {
            const Registers r = cpuid(leaf, i);
            const std::uint32_t type = r.eax & 31;
            if (type == none) break;
            if (type == instructions) continue;
            const std::size_t line = (r.ebx & 0xfff) + 1;
            const std::size_t partitions = (r.ebx >> 12 & 0x3ff) + 1;
            const std::size_t ways = (r.ebx >> 22) + 1;
            const std::size_t sets = std::size_t{r.ecx} + 1;
            largest = std::max(largest, line * partitions * ways * sets);
        }
    }
    return largest;
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

namespace {

std::size_t last_level_cache() {
    return 0;
}

}  // namespace

#endif

namespace {

std::atomic<std::size_t>& current_cache_size() {
    static std::atomic<std::size_t> size = [] {
        const std::size_t largest = last_level_cache();
        return largest == 0 ? largest_cache_size : std::min(largest / 2, largest_cache_size);
    }();
    return size;
}

}  // namespace

std::size_t cache_size() {
    return current_cache_size().load(std::memory_order_relaxed);
}

std::size_t set_cache_size(std::size_t bytes) {
    return current_cache_size().exchange(bytes, std::memory_order_relaxed);
}

}  // namespace schuss::runtime
