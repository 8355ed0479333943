#include "bindings/overlap.hpp"

#include <algorithm>
#include <iterator>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <utility>

#include "engine/axes.hpp"

namespace schuss::bindings {
namespace {

using engine::magnitude;

/// numpy.shares_memory, which is exact. Returns nullopt if the answer takes more work than the
/// limit.
std::optional<bool> share_memory(const py::object& a, const py::object& b) {
    constexpr int work = 1'000'000;
    const py::module_ numpy = py::module_::import("numpy");
    try {
        return numpy.attr("shares_memory")(a, b, py::arg("max_work") = work).cast<bool>();
    } catch (py::error_already_set& error) {
        if (!error.matches(numpy.attr("exceptions").attr("TooHardError"))) throw;
        return std::nullopt;
    }
}

/// One of the arrays that are compared.
struct Entry {
    const NamedArray* named;
    std::size_t index;  // in the order given: of two equal arrays, a message names the later first
    AddressRange bounds;
};

/// The range of addresses, modulo a stride, that an array covers.
struct Residues {
    std::size_t begin, length;
};

/// Returns the whole range if no smaller one is known.
Residues residues_of(const Entry& entry, std::size_t modulus) {
    const ArrayView& array = entry.named->array;
    std::size_t length = array.itemsize();
    for (std::size_t i = 0; i < array.ndim(); ++i) {
        const std::size_t stride = magnitude(array.strides()[i]);
        if (stride % modulus != 0) length += (array.shape()[i] - 1) * stride;
    }
    return {entry.bounds.begin % modulus, std::min(length, modulus)};
}

/// Finds arrays that share memory without comparing every pair.
class DisjointnessCheck {
    using Entries = std::span<Entry>;

  public:
    explicit DisjointnessCheck(std::string call) : call_(std::move(call)) {}

    /// ValueError if an array shares memory with another that is written. Reorders the entries.
    void check(Entries entries) {
        for_each_run_by_bounds(entries, [this](Entries run) { check_run(run); });
    }

  private:
    static bool any_is_written(Entries entries) {
        return std::any_of(entries.begin(), entries.end(),
                           [](const Entry& entry) { return entry.named->written; });
    }

    /// Visits a run of entries that may share memory, if one of them is written.
    template <class Visit>
    static void visit_run(Entries run, const Visit& visit) {
        if (run.size() > 1 && any_is_written(run)) visit(run);
    }

    /// Visits each run of entries whose bounds overlap.
    template <class Visit>
    static void for_each_run_by_bounds(Entries entries, const Visit& visit) {
        std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
            return std::pair(a.bounds.begin, a.index) < std::pair(b.bounds.begin, b.index);
        });
        for (std::size_t first = 0, next = 0; first < entries.size(); first = next) {
            std::size_t end = entries[first].bounds.end;
            for (next = first + 1; next < entries.size() && entries[next].bounds.begin < end;) {
                end = std::max(end, entries[next++].bounds.end);
            }
            visit_run(entries.subspan(first, next - first), visit);
        }
    }

    /// Visits each run of entries whose residues overlap. Returns false if that is all of them.
    template <class Visit>
    static bool for_each_run_by_residues(Entries entries, std::size_t modulus, const Visit& visit) {
        std::vector<std::pair<Residues, Entry>> sorted;
        for (const Entry& entry : entries) sorted.emplace_back(residues_of(entry, modulus), entry);
        std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
            return std::pair(a.first.begin, a.second.index) <
                   std::pair(b.first.begin, b.second.index);
        });
        // Residues are circular: the part of a range beyond the modulus is at the beginning.
        std::size_t wrapped = 0;
        for (const auto& [residues, entry] : sorted) {
            const std::size_t end = residues.begin + residues.length;
            if (end > modulus) wrapped = std::max(wrapped, end - modulus);
        }
        std::vector<std::size_t> starts;  // of disjoint runs
        std::size_t end = wrapped;
        for (std::size_t i = 0; i < sorted.size(); ++i) {
            const auto& [begin, length] = sorted[i].first;
            if (i > 0 && begin >= end) starts.push_back(i);
            end = std::max(end, begin + length);
        }
        const bool first_joins_last = wrapped > sorted.front().first.begin;
        if (starts.size() < (first_joins_last ? 2U : 1U)) return false;
        // If the first run joins the last one, it is moved behind it.
        if (first_joins_last) {
            const auto shift = static_cast<std::ptrdiff_t>(starts.front());
            std::rotate(sorted.begin(), sorted.begin() + shift, sorted.end());
            for (std::size_t& start : starts) start -= static_cast<std::size_t>(shift);
        } else {
            starts.insert(starts.begin(), 0);
        }
        for (std::size_t i = 0; i < sorted.size(); ++i) entries[i] = sorted[i].second;
        starts.push_back(sorted.size());
        for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
            visit_run(entries.subspan(starts[i], starts[i + 1] - starts[i]), visit);
        }
        return true;
    }

    /// The strides by which the arrays may interleave, in descending order, and the greatest common
    /// divisor of the largest stride of each array.
    static std::vector<std::size_t> moduli_of(Entries entries) {
        constexpr std::size_t most = 16;
        std::vector<std::size_t> moduli;
        std::size_t divisor = 0;
        for (const Entry& entry : entries) {
            std::size_t longest = 0;
            for (std::size_t i = 0; i < entry.named->array.ndim(); ++i) {
                const std::size_t stride = magnitude(entry.named->array.strides()[i]);
                if (entry.named->array.shape()[i] < 2 || stride == 0) continue;
                longest = std::max(longest, stride);
                const bool known = std::find(moduli.begin(), moduli.end(), stride) != moduli.end();
                if (!known && moduli.size() < most) moduli.push_back(stride);
            }
            divisor = std::gcd(divisor, longest);
        }
        std::sort(moduli.rbegin(), moduli.rend());
        if (divisor > 1) moduli.push_back(divisor);
        return moduli;
    }

    void check_run(Entries entries) {
        // For a pair, one exact comparison is as good.
        if (entries.size() > 2) {
            for (const std::size_t modulus : moduli_of(entries)) {
                const auto check_rest = [this](Entries rest) { check(rest); };
                if (for_each_run_by_residues(entries, modulus, check_rest)) return;
            }
        }
        check_pairs(entries);
    }

    /// Compares all pairs whose bounds overlap.
    void check_pairs(Entries entries) {
        std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
            return std::pair(a.bounds.begin, a.index) < std::pair(b.bounds.begin, b.index);
        });
        std::vector<py::object> arrays(entries.size());
        const auto array = [&](std::size_t i) -> const py::object& {
            if (!arrays[i]) arrays[i] = entries[i].named->array.plain();
            return arrays[i];
        };
        for (std::size_t i = 0; i < entries.size(); ++i) {
            for (std::size_t j = i + 1; j < entries.size(); ++j) {
                const Entry &a = entries[i], &b = entries[j];
                if (b.bounds.begin >= a.bounds.end) break;
                if (!a.named->written && !b.named->written) continue;
                if (same_memory(a.named->array, b.named->array)) refuse(a, b, "is");
                const bool too_many = pairs_++ >= max_pairs;
                const auto shared = too_many ? std::nullopt : share_memory(array(i), array(j));
                if (shared.value_or(true)) refuse(a, b, shared ? "shares" : "may share");
            }
        }
    }

    /// The message names first the array that is only read, or else the later one.
    [[noreturn]] void refuse(const Entry& a, const Entry& b, const std::string& verb) const {
        const bool a_first = b.named->written && !a.named->written;
        const NamedArray& named = *(a_first ? a : b).named;
        const NamedArray& other = *(a_first ? b : a).named;
        if (verb == "is" && named.written) {
            throw py::value_error(call_ + ": " + named.argument + " is the same array as " +
                                  other.argument + ", expected each array once");
        }
        const bool too_many = pairs_ > max_pairs;
        throw py::value_error(
            call_ + ": " + named.argument + " " + (verb == "is" ? "shares" : verb) +
            " memory with " + other.argument +
            (too_many ? " (too many arrays interleave to compare them all)" : "") +
            ", expected separate memory");
    }

    /// Limit on exact comparisons, which take microseconds. Beyond it, arrays count as sharing.
    static constexpr std::size_t max_pairs = 200'000;

    std::string call_;
    std::size_t pairs_ = 0;
};

/// The union of the arrays' bounds, as disjoint ranges in order.
std::vector<AddressRange> covered_by(const std::vector<NamedArray>& arrays) {
    std::vector<AddressRange> bounds, covered;
    bounds.reserve(arrays.size());
    for (const NamedArray& named : arrays) {
        bounds.push_back(bounds_of(named.array));
        if (bounds.back().is_empty()) bounds.pop_back();
    }
    std::sort(bounds.begin(), bounds.end(),
              [](const AddressRange& a, const AddressRange& b) { return a.begin < b.begin; });
    for (const AddressRange& each : bounds) {
        if (!covered.empty() && covered.back().end > each.begin) {
            covered.back().end = std::max(covered.back().end, each.end);
        } else {
            covered.push_back(each);
        }
    }
    return covered;
}

}  // namespace

AddressRange bounds_of(const ArrayView& array) {
    const auto data = reinterpret_cast<std::size_t>(array.data());
    if (array.size() == 0) return {data, data};
    AddressRange bounds{data, data + array.itemsize()};
    for (std::size_t i = 0; i < array.ndim(); ++i) {
        const std::ptrdiff_t reach =
            static_cast<std::ptrdiff_t>(array.shape()[i] - 1) * array.strides()[i];
        (reach < 0 ? bounds.begin : bounds.end) += static_cast<std::size_t>(reach);
    }
    return bounds;
}

bool strides_prove_disjoint(const ArrayView& array) {
    std::vector<std::pair<std::size_t, std::size_t>> axes;  // stride, size
    axes.reserve(array.ndim());
    for (std::size_t i = 0; i < array.ndim(); ++i) {
        if (array.shape()[i] == 0) return true;
        if (array.shape()[i] == 1) continue;
        axes.emplace_back(magnitude(array.strides()[i]), array.shape()[i]);
    }
    std::sort(axes.begin(), axes.end());
    std::size_t extent = array.itemsize();
    for (const auto& [stride, size] : axes) {
        if (stride < extent) return false;
        extent += stride * (size - 1);
    }
    return true;
}

bool elements_overlap(const ArrayView& view) {
    if (strides_prove_disjoint(view)) return false;
    // For each axis, compares the elements at its first index with those at its other indices.
    const py::array array = view.plain();
    for (std::size_t axis = 0; axis < view.ndim(); ++axis) {
        if (view.shape()[axis] == 1) continue;
        py::tuple first(view.ndim()), rest(view.ndim());
        for (std::size_t i = 0; i < view.ndim(); ++i) {
            const py::object all = py::slice(std::nullopt, std::nullopt, std::nullopt);
            const py::object one = py::slice(0, 1, 1);
            first[i] = i <= axis ? one : all;
            rest[i] = i < axis ? one : i == axis ? py::slice(1, std::nullopt, 1) : all;
        }
        const py::object a = array[first], b = array[rest];
        if (share_memory(a, b).value_or(true)) return true;
    }
    return false;
}

void check_disjoint(const std::string& call, const std::vector<NamedArray>& arrays) {
    std::vector<Entry> entries;
    entries.reserve(arrays.size());
    for (const NamedArray& named : arrays) {
        const AddressRange bounds = bounds_of(named.array);
        if (!bounds.is_empty()) entries.push_back({&named, entries.size(), bounds});
    }
    DisjointnessCheck(call).check(entries);
}

WriteSet::WriteSet(const std::string& call, std::vector<NamedArray> arrays)
    : arrays_(std::move(arrays)), covered_(covered_by(arrays_)) {
    const auto filled = std::count_if(arrays_.begin(), arrays_.end(), [](const NamedArray& named) {
        return !bounds_of(named.array).is_empty();
    });
    // Otherwise no bounds overlap.
    if (covered_.size() < static_cast<std::size_t>(filled)) check_disjoint(call, arrays_);
}

AddressRange WriteSet::free_range_around(const AddressRange& bounds) const {
    // The first covered range that ends after the beginning.
    const auto next = std::upper_bound(
        covered_.begin(), covered_.end(), bounds.begin,
        [](std::size_t begin, const AddressRange& range) { return begin < range.end; });
    if (next != covered_.end() && bounds.end > next->begin) return {1, 0};
    return {next == covered_.begin() ? 0 : std::prev(next)->end,
            next == covered_.end() ? std::numeric_limits<std::size_t>::max() : next->begin};
}

void WriteSet::check_disjoint_from(const std::string& call, std::vector<NamedArray> read) const {
    for (NamedArray& named : read) named.written = false;
    read.insert(read.end(), arrays_.begin(), arrays_.end());
    check_disjoint(call, read);
}

int WriteSet::traverse(visitproc visit, void* arg) const {
    for (const NamedArray& named : arrays_) {
        if (const int result = named.array.traverse(visit, arg); result != 0) return result;
    }
    return 0;
}

}  // namespace schuss::bindings
