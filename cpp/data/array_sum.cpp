#include "data/array_sum.hpp"

#include <algorithm>

#include "data/sharing.hpp"
#include "engine/copy.hpp"
#include "runtime/subnormals.hpp"
#include "sweep/dispatch.hpp"

namespace schuss::data {
namespace {

/// The sums of this many bytes stay in the first-level cache while the terms are added. Measured on
/// an AMD EPYC (Zen 5) with two arrays of 16.7 M float32: four times as many take 1.1 of the time.
constexpr std::size_t piece_bytes = std::size_t{1} << 12;
constexpr std::size_t pieces_per_task = 32;

}  // namespace

ArraySum::ArraySum(const std::vector<Term>& terms, numbers::DType dtype, std::byte* out,
                   std::size_t count)
    : dtype_(dtype), out_(out), count_(count), bytes_(count * numbers::size_of(dtype)) {
    for (const Term& term : terms) bytes_ += count * numbers::size_of(term.dtype);
    const engine::Formula first("accumulation_first", 0), next("accumulation", 0);
    updates_.reserve(terms.size());
    for (const Term& term : terms) {
        const engine::Formula& formula = updates_.empty() ? first : next;
        engine::Update& update = updates_.emplace_back(formula.update(1, engine::no_limit));
        update.set_scale(numbers::Wide(term.weight));
        addends_.push_back({update.call({dtype, term.dtype, dtype}, false), term.data,
                            numbers::size_of(term.dtype)});
        overwrites_term_ = overwrites_term_ || term.data == out;
    }
}

void ArraySum::run() const noexcept {
    const std::size_t piece = piece_bytes / numbers::size_of(dtype_);
    const std::size_t task = pieces_per_task * piece;
    run_tasks((count_ + task - 1) / task, sharing_of(bytes_), [&](std::size_t i, std::size_t) {
        const runtime::SubnormalsAreZero mode;
        const std::size_t end = std::min((i + 1) * task, count_);
        for (std::size_t begin = i * task; begin < end; begin += piece) {
            run_piece(begin, std::min(piece, end - begin));
        }
    });
}

void ArraySum::run_piece(std::size_t begin, std::size_t count) const noexcept {
    const sweep::Level& level = sweep::level();
    const sweep::Format& loops = level.format(dtype_);
    alignas(engine::cache_line) std::byte scratch[piece_bytes];
    std::byte* const out = out_ + begin * loops.size;
    std::byte* const sums = overwrites_term_ ? scratch : out;
    for (const Addend& addend : addends_) {
        auto* const values = const_cast<std::byte*>(addend.data + begin * addend.size);
        std::byte* const operands[] = {sums, values};
        level.run(addend.call, operands, count, nullptr);
    }
    if (overwrites_term_) loops.store(scratch, out, count);
}

}  // namespace schuss::data
