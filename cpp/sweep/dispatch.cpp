#include "sweep/dispatch.hpp"

#include <atomic>
#include <cstdint>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace schuss::sweep {
#define SCHUSS_LEVEL(name) extern const Level level_##name;
#include "levels.def"
}  // namespace schuss::sweep

namespace schuss::sweep {
namespace {

// In the order of CMakeLists.txt: from the least to the best.
const Level* const built_levels[] = {
#define SCHUSS_LEVEL(name) &sweep::level_##name,
#include "levels.def"
};

#if defined(__x86_64__)

struct Registers {
    std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(std::uint32_t leaf) {
    Registers r;
    __get_cpuid_count(leaf, 0, &r.eax, &r.ebx, &r.ecx, &r.edx);  // all zero past the last leaf
    return r;
}

std::uint64_t saved_states() {
    std::uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return std::uint64_t{high} << 32 | low;
}

/// A bit for each feature that the processor has and whose registers the operating system saves.
std::uint64_t detect_features() {
    constexpr std::uint32_t osxsave = 1u << 27;
    const std::uint64_t saved = (cpuid(1).ecx & osxsave) != 0 ? saved_states() : 0;
    std::uint64_t features = 0;
#define SCHUSS_FEATURE(name, macro, leaf, reg, bit, state)                     \
    if ((cpuid(leaf).reg >> (bit) & 1) != 0 && (saved & (state)) == (state)) { \
        features |= std::uint64_t{1} << unsigned(Feature::name);               \
    }
#include "sweep/features.def"
    return features;
}

#else

/// Elsewhere there is the baseline alone, and the compiler vouches for it.
std::uint64_t detect_features() {
    return ~std::uint64_t{0};
}

#endif

bool runs_here(const Level& level) {
    static const std::uint64_t features = detect_features();
    return (level.features & ~features) == 0;
}

std::atomic<const Level*>& in_use() {
    static std::atomic<const Level*> level = available_levels().back();
    return level;
}

}  // namespace

std::vector<const Level*> available_levels() {
    std::vector<const Level*> result;
    for (const Level* level : built_levels) {
        if (runs_here(*level)) result.push_back(level);
    }
    if (result.empty()) {
        throw std::runtime_error("schuss was built for another processor than this one");
    }
    return result;
}

const Level& level() {
    return *in_use().load(std::memory_order_relaxed);
}

void use_level(std::string_view name) {
    std::string names;
    for (const Level* candidate : available_levels()) {
        if (name == candidate->name) {
            in_use().store(candidate, std::memory_order_relaxed);
            return;
        }
        names += (names.empty() ? "" : ", ") + std::string(candidate->name);
    }
    bool built = false;
    for (const Level* candidate : built_levels) built = built || name == candidate->name;
    throw std::invalid_argument(
        (built ? "this processor has no '" : "there is no instruction set level '") +
        std::string(name) + "'; available: " + names);
}

}  // namespace schuss::sweep
