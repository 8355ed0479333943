#include "sweep/dispatch.hpp"

#include <atomic>
#include <cstdint>
#include <stdexcept>

#include "runtime/cpu.hpp"

namespace schuss::sweep {

// CMake writes levels.def, from the least capable level to the most capable.
#define SCHUSS_LEVEL(name) extern const Level level_##name;
#include "levels.def"

bool multiplies_for_roots = runtime::has_slow_divider();

namespace {

const Level* const built_levels[] = {
#define SCHUSS_LEVEL(name) &level_##name,
#include "levels.def"
};

bool is_available(const Level& level) {
    static const std::uint64_t features = runtime::cpu_features();
    return (level.features & ~features) == 0;
}

std::atomic<const Level*>& current() {
    static std::atomic<const Level*> level = available_levels().back();
    return level;
}

}  // namespace

std::vector<const Level*> available_levels() {
    std::vector<const Level*> result;
    for (const Level* level : built_levels) {
        if (is_available(*level)) result.push_back(level);
    }
    if (result.empty()) {
        throw std::runtime_error("schuss was built for a different processor");
    }
    return result;
}

const Level& level() {
    return *current().load(std::memory_order_relaxed);
}

void use_level(std::string_view name) {
    std::string names;
    for (const Level* candidate : available_levels()) {
        if (name == candidate->name) {
            current().store(candidate, std::memory_order_relaxed);
            return;
        }
        names += (names.empty() ? "" : ", ") + std::string(candidate->name);
    }
    bool built = false;
    for (const Level* candidate : built_levels) built = built || name == candidate->name;
    throw std::invalid_argument(
        (built ? "this processor does not support '" : "unknown instruction set level '") +
        std::string(name) + "'; available: " + names);
}

bool multiply_for_roots(bool multiply) {
    const bool before = multiplies_for_roots;
    multiplies_for_roots = multiply;
    return before;
}

}  // namespace schuss::sweep
