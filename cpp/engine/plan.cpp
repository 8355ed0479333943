#include "engine/plan.hpp"

#include <algorithm>
#include <utility>

#include "engine/sharing.hpp"
#include "engine/streams.hpp"
#include "runtime/cpu.hpp"
#include "runtime/subnormals.hpp"
#include "sweep/dispatch.hpp"

namespace schuss::engine {
namespace {

/// Reading the clock would cost shorter steps too much. One thread makes them.
constexpr std::size_t timed_bytes = std::size_t{1} << 16;

/// A step has this many shares, so that threads can divide it evenly, unless a share would have
/// less than one tile or more than `max_tiles`.
constexpr std::size_t shares_per_step = 64, max_tiles = 16;

/// The elements of a share of this many elements in all.
std::size_t elements_per_share(std::size_t elements) {
    const std::size_t tile_size = tile_elements();
    const std::size_t tiles = elements / tile_size / shares_per_step;
    return std::clamp(tiles, std::size_t{1}, max_tiles) * tile_size;
}

}  // namespace

void Plan::build() {
    statistics_laid_out_ = false;
    shares_.clear();
    if (!has_own_first_) first_.clear();
    scratch_bytes_ = elements_ = bytes_ = 0;
    stochastic_ = some_rest_ = false;
    std::size_t first = 0;
    for (const Item& item : items) {
        const Layout& layout = item.layout;
        scratch_bytes_ = std::max(scratch_bytes_, layout.scratch_bytes());
        if (!has_own_first_) first_.push_back(first);
        first += item.elements;
        some_rest_ = some_rest_ || item.rests;
        stochastic_ = stochastic_ || layout.rounds_at_random();
        elements_ += layout.elements() * layout.components();
        bytes_ += layout.bytes();
    }
    const std::size_t enough = elements_per_share(elements_);
    std::size_t size = enough;  // of the last share
    for (std::size_t i = 0; i < items.size(); ++i) {
        const Layout& layout = items[i].layout;
        for (std::size_t tile = 0; tile < layout.tiles(); ++tile) {
            if (size >= enough) {
                shares_.push_back({i, tile});
                size = 0;
            }
            size += layout.elements() * layout.components() / layout.tiles();
        }
    }
    shares_.push_back({items.size(), 0});
    built_ = true;
}

void Plan::prepare() {
    if (!built_) build();
    const Sharing sharing =
        sharing_of(pace_.estimate(bytes_).count(),
                   std::min(runtime::threads(), std::max(shares_.size() - 1, std::size_t{1})));
    threads_ = sharing.threads;
    wake_workers_ = sharing.wakes;
    prefetches_ = bytes_ > runtime::cache_size();
    if (scratch_.size() < threads_) scratch_.resize(threads_);
    for (Scratch& scratch : scratch_) scratch.reserve(scratch_bytes_);
}

void Plan::prepare_statistics(const std::vector<const RowGradient*>& rows) {
    if (!statistics_laid_out_ || !rows.empty()) {
        std::vector<GradientStats::Gradient> gradients;
        for (std::size_t i = 0; i < items.size(); ++i) {
            // The order of a parameter that rests has no elements.
            gradients.push_back({items[i].formats.gradient, &items[i].gradient_order, nullptr});
            if (i >= rows.size() || rows[i] == nullptr) continue;
            gradients[i].dtype = rows[i]->computed;
            gradients[i].rows = rows[i];
            gradients[i].elements = items[i].elements;
        }
        statistics_.lay_out(std::move(gradients));
        statistics_laid_out_ = rows.empty();
    }
    for (std::size_t i = 0; i < items.size(); ++i) statistics_.set_data(i, items[i].gradient());
    statistics_.prepare(threads_);
}

void Plan::prepare_norms() {
    if (norms_.size() < threads_) norms_.resize(threads_);
    for (std::unique_ptr<Norms>& norms : norms_) {
        if (!norms) norms = std::make_unique<Norms>();
        norms->parameter = norms->update = ExactNorm();
    }
}

const GradientStats& Plan::statistics() noexcept {
    backwards_ = !backwards_;
    statistics_.run(sweep::level(), wake_workers_, backwards_);
    return statistics_;
}

/// A run under way.
struct Plan::Job {
    Job(Plan& of, const Run& under_way) : plan(of), run(under_way), level(sweep::level()) {
        if (plan.stochastic_) streams = Streams(run.seed, run.step);
    }

    Norms* norms_of(std::size_t slot) const {
        return run.measure_norms ? plan.norms_[slot].get() : nullptr;
    }

    /// Calls use(item, pass) with the pass over an item, unless that has nothing to do. norms: of
    /// the thread.
    template <class Use>
    void with_pass(std::size_t index, Norms* norms, const Use& use) const {
        const Item& item = plan.items[index];
        if (item.rests && run.average == nullptr && norms == nullptr) return;
        const Update* const update = run.groups == nullptr ? nullptr : &run.groups[item.group];
        ItemPass all(item, update, run.average, level, plan.prefetches_);
        all.pass.clear_gradients = run.clear_gradients && !item.rests;
        all.pass.first = plan.first_[index];
        all.pass.streams = streams.keys;
        all.pass.norms = norms;
        use(item, all.pass);
    }

    Plan& plan;
    const Run& run;
    const sweep::Level& level;
    Streams streams;
};

void Plan::run(const Run& run) noexcept {
    Job job(*this, run);
    const auto run_share = [](void* context, std::size_t share, std::size_t slot) noexcept {
        const Job& all = *static_cast<const Job*>(context);
        Plan& plan = all.plan;
        const runtime::SubnormalsAreZero mode;
        Norms* const norms = all.norms_of(slot);
        Share at = plan.shares_[share];
        const Share end = plan.shares_[share + 1];
        for (; at.item <= end.item && at.item < plan.items.size(); at = {at.item + 1, 0}) {
            all.with_pass(at.item, norms, [&](const Item& item, const Pass& pass) {
                const std::size_t tiles = at.item == end.item ? end.tile : item.layout.tiles();
                run_pass(item.layout, at.tile, tiles, item.data, pass, plan.scratch_[slot]);
            });
        }
    };
    // Each pass begins where the last one ended: there the caches still have the arrays.
    backwards_ = !backwards_;
    const runtime::Work work{run_share, &job, shares_.size() - 1, wake_workers_, backwards_};
    const bool is_timed = bytes_ >= timed_bytes;
    const Pace::Clock::time_point start = is_timed ? Pace::Clock::now() : Pace::Clock::time_point();
    const std::size_t threads = runtime::parallel_for(work, threads_);
    // A run without updates is shorter than those that follow.
    if (is_timed && run.groups != nullptr) {
        pace_.record((Pace::Clock::now() - start) * threads, bytes_);
    }
    if (run.measure_norms) add_norms();
}

void Plan::add_norms() noexcept {
    for (std::size_t slot = 1; slot < norms_.size(); ++slot) {
        norms_[0]->parameter.add(norms_[slot]->parameter);
        norms_[0]->update.add(norms_[slot]->update);
    }
}

bool Plan::is_flat() const {
    return std::all_of(items.begin(), items.end(),
                       [](const Item& item) { return item.layout.is_flat(); });
}

void Plan::prepare_ranges(const std::vector<std::size_t>& sizes) {
    begins_.assign(1, 0);
    for (const std::size_t size : sizes) begins_.push_back(begins_.back() + size);
}

/// Where an item is cut for an element among those of all items: at the next multiple of
/// `range_unit`, or at the end. Ranges end at such multiples: those of a step in pieces at
/// multiples of the larger `sweep::stats_block`. The threads' shares of a range may end anywhere,
/// and the blocks of 8-bit state must stay whole.
std::size_t Plan::place_in(std::size_t item, std::size_t element) const noexcept {
    const std::size_t begin = begins_[item], size = begins_[item + 1] - begin;
    if (element <= begin) return 0;
    return std::min((element - begin + range_unit - 1) / range_unit * range_unit, size);
}

/// Passes over some elements of a range.
void Plan::run_part(const Job& job, const Range& range, std::size_t begin, std::size_t end,
                    std::size_t slot) const noexcept {
    const auto next = std::upper_bound(begins_.begin(), begins_.end(), begin);
    auto i = static_cast<std::size_t>(next - begins_.begin()) - 1;
    for (; i < items.size() && begins_[i] < end; ++i) {
        job.with_pass(i, job.norms_of(slot), [&](const Item& item, const Pass& pass) {
            std::byte* data[max_arrays];
            std::copy_n(item.data, item.layout.operands(), data);
            std::byte* const* state = range.states;
            for (std::size_t k = 0; state != nullptr && k < item.layout.operands(); ++k) {
                const OperandInfo& operand = item.layout.operand(k);
                if (operand.role != Role::state) continue;
                data[k] = *state++ - operand.bytes(place_in(i, range.begin));
            }
            run_elements(item.layout, place_in(i, begin), place_in(i, end), data, pass);
        });
    }
}

void Plan::run_range(const Run& run, const Range& range) noexcept {
    struct Parts {
        Job job;
        const Range& range;
        std::size_t size;
    };
    const std::size_t elements = range.end - range.begin;
    Parts parts{Job(*this, run), range, elements_per_share(elements)};
    const auto run_part = [](void* context, std::size_t part, std::size_t slot) noexcept {
        const Parts& all = *static_cast<const Parts*>(context);
        const runtime::SubnormalsAreZero mode;
        const std::size_t begin = all.range.begin + part * all.size;
        all.job.plan.run_part(all.job, all.range, begin, std::min(begin + all.size, all.range.end),
                              slot);
    };
    const double share = static_cast<double>(elements) / static_cast<double>(begins_.back());
    const auto bytes = static_cast<std::size_t>(share * static_cast<double>(bytes_));
    const Sharing sharing = sharing_of(pace_.estimate(bytes).count(), threads_);
    const runtime::Work work{run_part, &parts, (elements + parts.size - 1) / parts.size,
                             sharing.wakes};
    const bool is_timed = bytes >= timed_bytes;
    const Pace::Clock::time_point start = is_timed ? Pace::Clock::now() : Pace::Clock::time_point();
    const std::size_t threads = runtime::parallel_for(work, sharing.threads);
    if (is_timed) pace_.record((Pace::Clock::now() - start) * threads, bytes);
}

}  // namespace schuss::engine
