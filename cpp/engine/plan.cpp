#include "engine/plan.hpp"

#include <algorithm>
#include <atomic>
#include <optional>
#include <utility>

#include "runtime/cpu.hpp"
#include "runtime/subnormals.hpp"
#include "sweep/dispatch.hpp"

namespace schuss::engine {
namespace {

#include "numbers/random.hpp"

/// Threads share a step that takes one thread this many nanoseconds for each of them if the workers
/// are awake, and `waking_factor` times as long in all if they must be woken.
constexpr double waking_factor = 250;
std::atomic<double> parallel_threshold = 1000;

/// Reading the clock would cost shorter steps too much. One thread makes them.
constexpr std::size_t timed_bytes = std::size_t{1} << 16;

/// A step has this many shares, so that threads can divide it evenly, unless a share would have
/// less than one tile or more than `max_tiles`.
constexpr std::size_t shares_per_step = 64, max_tiles = 16;

}  // namespace

double set_parallel_threshold(double nanoseconds) {
    return parallel_threshold.exchange(nanoseconds, std::memory_order_relaxed);
}

Item::Item(std::size_t group_index, const std::vector<std::size_t>& shape,
           const std::vector<Operand>& operands)
    : group(group_index) {
    const Operand& parameter = operands[rules::parameter_operand];
    const Operand& gradient = operands[rules::gradient_operand];
    const std::size_t numbers_per_tile = tile_elements() / parameter.components;
    layout = Layout(shape, operands, std::max(numbers_per_tile, std::size_t{1}));
    formats = {.parameter = parameter.dtype,
               .gradient = gradient.dtype,
               .state = numbers::compute_dtype(parameter.dtype),
               .rounds_parameter = parameter.at_random};
    for (std::size_t i = 0; i < operands.size(); ++i) {
        if (operands[i].role == Role::state) {
            formats.state = operands[i].dtype;
            formats.moduli = formats.moduli || operands[i].components < parameter.components;
        }
        if (operands[i].role == Role::master) formats.master = operands[i].master;
        data[i] = const_cast<std::byte*>(operands[i].data) + layout.offset(i);
    }
    gradient_order = MemoryOrder(shape, parameter, gradient);
    elements = layout.elements() * layout.components();
}

Item Item::resting(std::size_t group_index, const std::vector<std::size_t>& shape,
                   std::size_t components, const std::vector<Operand>& operands) {
    Item item = operands.empty() ? Item() : Item(group_index, shape, operands);
    item.group = group_index;
    item.gradient_order = MemoryOrder();
    item.elements = components;
    for (const std::size_t size : shape) item.elements *= size;
    item.rests = true;
    return item;
}

void Plan::build() {
    statistics_laid_out_ = false;
    shares_.clear();
    first_.clear();
    scratch_bytes_ = elements_ = bytes_ = 0;
    stochastic_ = some_rest_ = false;
    std::size_t first = 0;
    for (const Item& item : items) {
        const Layout& layout = item.layout;
        scratch_bytes_ = std::max(scratch_bytes_, layout.scratch_bytes());
        first_.push_back(first);
        first += item.elements;
        some_rest_ = some_rest_ || item.rests;
        stochastic_ = stochastic_ || layout.rounds_at_random();
        elements_ += layout.elements() * layout.components();
        bytes_ += layout.bytes();
    }
    const std::size_t tile_size = tile_elements();
    const std::size_t tiles = elements_ / tile_size / shares_per_step;
    const std::size_t enough = std::clamp(tiles, std::size_t{1}, max_tiles) * tile_size;
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
    const double threshold = parallel_threshold.load(std::memory_order_relaxed);
    const double time = pace_.estimate(bytes_).count();
    wake_workers_ = time >= waking_factor * threshold;
    threads_ = std::min(runtime::threads(), std::max(shares_.size() - 1, std::size_t{1}));
    while (threads_ > 1 && time < static_cast<double>(threads_) * threshold) --threads_;
    prefetches_ = bytes_ > runtime::cache_size();
    if (scratch_.size() < threads_) scratch_.resize(threads_);
    for (Scratch& scratch : scratch_) scratch.reserve(scratch_bytes_);
}

void Plan::prepare_statistics() {
    if (!statistics_laid_out_) {
        std::vector<GradientStats::Gradient> gradients;
        for (const Item& item : items) {
            // The order of a parameter that rests has no elements.
            gradients.push_back({item.formats.gradient, &item.gradient_order, nullptr});
        }
        statistics_.lay_out(std::move(gradients));
        statistics_laid_out_ = true;
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

void Plan::run(const Run& run) noexcept {
    struct Step {
        Plan& plan;
        const Run& run;
        const sweep::Level& level;
        std::uint64_t streams[rules::max_states + 1];
    } step{*this, run, sweep::level(), {}};
    for (std::uint64_t k = 0; stochastic_ && k <= rules::max_states; ++k) {
        step.streams[k] = splitmix64(splitmix64(splitmix64(run.seed) ^ run.step) ^ k);
    }
    const auto run_share = [](void* context, std::size_t share, std::size_t slot) noexcept {
        const auto& [plan, all, table, streams] = *static_cast<const Step*>(context);
        const runtime::SubnormalsAreZero mode;
        Share at = plan.shares_[share];
        const Share end = plan.shares_[share + 1];
        Norms* const norms = all.measure_norms ? plan.norms_[slot].get() : nullptr;
        for (; at.item <= end.item && at.item < plan.items.size(); at = {at.item + 1, 0}) {
            const Item& item = plan.items[at.item];
            if (item.rests && all.average == nullptr && norms == nullptr) continue;
            const numbers::DType computed = numbers::compute_dtype(item.formats.parameter);
            std::optional<sweep::Call> average;
            if (all.average != nullptr) {
                average =
                    all.average->call({computed, item.averaged(), computed}, plan.prefetches_);
            }
            const Update* const update =
                item.rests || all.groups == nullptr ? nullptr : &all.groups[item.group];
            const Pass pass{.level = table,
                            .update = update != nullptr
                                          ? update->call(item.formats, plan.prefetches_)
                                      : item.rests && average ? *average
                                                              : sweep::Call{},
                            .average = average ? &*average : nullptr,
                            .clear_gradients = all.clear_gradients && !item.rests,
                            .first = plan.first_[at.item],
                            .streams = streams,
                            .norms = norms,
                            .rests = item.rests};
            const std::size_t tiles = at.item == end.item ? end.tile : item.layout.tiles();
            run_pass(item.layout, at.tile, tiles, item.data, pass, plan.scratch_[slot]);
        }
    };
    // Each pass begins where the last one ended: there the caches still have the arrays.
    backwards_ = !backwards_;
    const runtime::Work work{run_share, &step, shares_.size() - 1, wake_workers_, backwards_};
    const bool is_timed = bytes_ >= timed_bytes;
    const Pace::Clock::time_point start = is_timed ? Pace::Clock::now() : Pace::Clock::time_point();
    const std::size_t threads = runtime::parallel_for(work, threads_);
    // A run without updates is shorter than those that follow.
    if (is_timed && run.groups != nullptr) {
        pace_.record((Pace::Clock::now() - start) * threads, bytes_);
    }
    for (std::size_t slot = 1; run.measure_norms && slot < norms_.size(); ++slot) {
        norms_[0]->parameter.add(norms_[slot]->parameter);
        norms_[0]->update.add(norms_[slot]->update);
    }
}

}  // namespace schuss::engine
