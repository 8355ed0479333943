#include "engine/plan.hpp"

#include <algorithm>
#include <atomic>
#include <optional>
#include <utility>

#include "runtime/cpu.hpp"
#include "runtime/subnormals.hpp"
#include "runtime/thread_pool.hpp"
#include "sweep/dispatch.hpp"

namespace schuss::engine {
namespace {

#include "numbers/random.hpp"

/// Threads share a step from `parallel_threshold` elements on if the workers are awake, and from
/// `waking_factor` times that number on if they must be woken. Measured with Adam in float32 on two
/// cores: in a tight loop, two threads take 0.8 to 1.1 of one thread's time for 2^16 elements and
/// 0.6 to 0.8 for 2^18. Between matrix products, where workers sleep and must be woken, they take
/// 1.05 for 2^18 and 0.95 for 2^20.
constexpr std::size_t waking_factor = 8;
std::atomic<std::size_t> parallel_threshold = std::size_t{1} << 16;

}  // namespace

std::size_t set_parallel_threshold(std::size_t elements) {
    return parallel_threshold.exchange(elements, std::memory_order_relaxed);
}

Item::Item(std::size_t group_index, const std::vector<std::size_t>& shape,
           const std::vector<Operand>& operands)
    : group(group_index) {
    const Operand& parameter = operands[rules::parameter_operand];
    const Operand& gradient = operands[rules::gradient_operand];
    const std::size_t numbers_per_tile = tile_elements() / parameter.components;
    layout = Layout(shape, operands, std::max(numbers_per_tile, std::size_t{1}));
    formats = {parameter.dtype, gradient.dtype, numbers::compute_dtype(parameter.dtype)};
    for (std::size_t i = 0; i < operands.size(); ++i) {
        if (operands[i].role == Role::state) {
            formats.state = operands[i].dtype;
            formats.moduli = formats.moduli || operands[i].components < parameter.components;
        }
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
    shares_.clear();
    first_.clear();
    scratch_bytes_ = elements_ = bytes_ = 0;
    stochastic_ = some_rest_ = false;
    std::size_t first = 0;
    const std::size_t enough = tile_elements();
    std::size_t size = enough;  // of the last share
    for (std::size_t i = 0; i < items.size(); ++i) {
        const Layout& layout = items[i].layout;
        scratch_bytes_ = std::max(scratch_bytes_, layout.scratch_bytes());
        first_.push_back(first);
        first += items[i].elements;
        some_rest_ = some_rest_ || items[i].rests;
        const numbers::DType state = items[i].formats.state;
        stochastic_ = stochastic_ || state != numbers::compute_dtype(state);
        const std::size_t elements = layout.elements() * layout.components();
        elements_ += elements;
        bytes_ += layout.bytes();
        for (std::size_t tile = 0; tile < layout.tiles(); ++tile) {
            if (size >= enough) {
                shares_.push_back({i, tile});
                size = 0;
            }
            size += elements / layout.tiles();
        }
    }
    shares_.push_back({items.size(), 0});
    built_ = true;
}

void Plan::prepare() {
    if (!built_) build();
    const std::size_t enough = parallel_threshold.load(std::memory_order_relaxed);
    threads_ = elements_ < enough ? 1 : std::min(runtime::threads(), shares_.size());
    wake_workers_ = elements_ >= waking_factor * enough;
    prefetches_ = bytes_ > runtime::cache_size();
    if (scratch_.size() < threads_) scratch_.resize(threads_);
    for (Scratch& scratch : scratch_) scratch.reserve(scratch_bytes_);
}

void Plan::prepare_statistics() {
    std::vector<GradientStats::Gradient> gradients;
    for (const Item& item : items) {
        // The order of a parameter that rests has no elements.
        gradients.push_back({item.formats.gradient, &item.gradient_order, item.gradient()});
    }
    statistics_.prepare(std::move(gradients), threads_);
}

void Plan::prepare_norms() {
    norms_.resize(threads_);
    for (std::unique_ptr<Norms>& norms : norms_) {
        if (!norms) norms = std::make_unique<Norms>();
        norms->parameter = norms->update = ExactNorm();
    }
}

const GradientStats& Plan::statistics() noexcept {
    statistics_.run(sweep::level(), wake_workers_);
    return statistics_;
}

void Plan::run(const Run& run) noexcept {
    struct Step {
        Plan& plan;
        const Run& run;
        const sweep::Level& level;
        std::uint64_t streams[rules::max_states];
    } step{*this, run, sweep::level(), {}};
    for (std::uint64_t k = 0; stochastic_ && k < rules::max_states; ++k) {
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
            const Update* const update = item.rests              ? all.average
                                         : all.groups == nullptr ? nullptr
                                                                 : &all.groups[item.group];
            std::optional<sweep::Call> average;
            if (all.average != nullptr) {
                average = all.average->call({computed, item.formats.parameter, computed},
                                            plan.prefetches_);
            }
            const Pass pass{.level = table,
                            .update = update == nullptr
                                          ? sweep::Call{}
                                          : update->call(item.formats, plan.prefetches_),
                            .average = average ? &*average : nullptr,
                            .clear_gradients = all.clear_gradients && !item.rests,
                            .first = plan.first_[at.item],
                            .streams = streams,
                            .norms = norms,
                            .rests = item.rests};
            const std::size_t tiles = at.item == end.item ? end.tile : item.layout.tiles();
            for (std::size_t tile = at.tile; tile < tiles; ++tile) {
                run_pass(item.layout, tile, item.data, pass, plan.scratch_[slot]);
            }
        }
    };
    runtime::parallel_for({run_share, &step, shares_.size() - 1, wake_workers_}, threads_);
    for (std::size_t slot = 1; run.measure_norms && slot < norms_.size(); ++slot) {
        norms_[0]->parameter.add(norms_[slot]->parameter);
        norms_[0]->update.add(norms_[slot]->update);
    }
}

}  // namespace schuss::engine
