// Tests the engine without Python: replays the cases that vectors.py wrote, and compares all memory
// with the result of the NumPy reference, bit for bit (any NaN equals any NaN).
//
//     replay FILE [level]         replays every case at each level or at one, in small and large
//                                 tiles, on one thread and on several
//     replay FILE --threads       replays on several threads at the same time, while the settings
//                                 change and workers are woken early
//     replay FILE --fork          forks while another thread steps, and replays in the children

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "data/ewma.hpp"
#include "data/gather.hpp"
#include "data/sharing.hpp"
#include "data/shuffle.hpp"
#include "engine/copy.hpp"
#include "engine/sharing.hpp"
#include "engine/step.hpp"
#include "rules/registry.hpp"
#include "runtime/cpu.hpp"
#include "runtime/fork.hpp"
#include "runtime/thread_pool.hpp"
#include "sweep/dispatch.hpp"

namespace {

namespace data = schuss::data;
namespace engine = schuss::engine;
namespace numbers = schuss::numbers;
namespace rules = schuss::rules;
namespace runtime = schuss::runtime;
namespace sweep = schuss::sweep;

using Bytes = std::vector<std::byte>;

/// The fields of a file, one after the other.
class Fields {
  public:
    explicit Fields(const Bytes& all) : at_(all.data()), end_(at_ + all.size()) {}

    bool more() const { return at_ != end_; }
    std::size_t integer() { return take<std::uint64_t>(); }
    double real() { return take<double>(); }
    Bytes bytes() {
        const std::size_t size = integer();
        const std::byte* const begin = advance(size);
        return {begin, begin + size};
    }
    std::string text() {
        const Bytes all = bytes();
        return {reinterpret_cast<const char*>(all.data()), all.size()};
    }

  private:
    template <typename T>
    T take() {
        T value;
        std::memcpy(&value, advance(sizeof value), sizeof value);
        return value;
    }
    const std::byte* advance(std::size_t size) {
        if (size > static_cast<std::size_t>(end_ - at_)) throw std::runtime_error("cut short");
        at_ += size;
        return at_ - size;
    }

    const std::byte *at_, *end_;
};

/// An array with its memory before the case and its elements after it. The memory is no larger than
/// the elements need, so that a sanitizer reports accesses beyond them.
struct Array {
    std::size_t number, item_size;
    std::vector<std::size_t> shape;
    std::vector<std::ptrdiff_t> strides;
    std::size_t first;
    Bytes before, after, memory;

    explicit Array(Fields& in) : number(in.integer()), item_size(in.integer()) {
        shape.resize(in.integer());
        for (std::size_t& size : shape) size = in.integer();
        for (std::size_t i = 0; i < shape.size(); ++i) {
            strides.push_back(static_cast<std::ptrdiff_t>(in.integer()));
        }
        first = in.integer();
        before = in.bytes();
        after = in.bytes();
        memory = before;
    }

    std::byte* data() { return memory.data() + first; }
    bool has_format() const { return number < numbers::dtype_count; }  // or its elements are bytes
    numbers::DType format() const { return static_cast<numbers::DType>(number); }
    bool has_blocks() const { return has_format() && numbers::block_of(format()) > 1; }
    std::size_t component_size() const {
        return has_format() ? numbers::size_of(format()) : item_size;
    }
    std::uint8_t components() const {
        return static_cast<std::uint8_t>(item_size / component_size());
    }

    std::vector<engine::CopyAxis> axes() const {
        std::vector<engine::CopyAxis> result(shape.size());
        auto dense = static_cast<std::ptrdiff_t>(item_size);
        for (std::size_t i = shape.size(); i-- > 0;) {
            result[i] = {shape[i], dense, strides[i]};
            dense *= static_cast<std::ptrdiff_t>(shape[i]);
        }
        return result;
    }

    bool is_nan(const std::byte* component) const {
        static constexpr std::uint64_t infinities[] = {0x7f800000, 0x7ff0000000000000, 0x7c00,
                                                       0x7f80};
        if (!has_format() || has_blocks()) return false;
        std::uint64_t bits = 0;
        std::memcpy(&bits, component, component_size());
        return (bits & ~(std::uint64_t{1} << (8 * component_size() - 1))) > infinities[number];
    }

    /// Whether the elements are as expected, and the memory between them is unchanged.
    bool is_right() const {
        Bytes expected = before;
        engine::for_each(axes(), after.data(), expected.data() + first,
                         [&](const std::byte* from, std::byte* to) {
                             const std::byte* ours = memory.data() + (to - expected.data());
                             const std::size_t size = component_size();
                             for (std::size_t i = 0; i < components(); ++i) {
                                 const bool both_nan = is_nan(from) && is_nan(ours);
                                 std::memcpy(to, both_nan ? ours : from, size);
                                 from += size, ours += size, to += size;
                             }
                         });
        return memory == expected;
    }
};

/// A case that can be replayed.
class Case {
  public:
    explicit Case(std::string name) : name_(std::move(name)) {}
    virtual ~Case() = default;
    const std::string& name() const { return name_; }
    virtual bool replay() = 0;

  private:
    std::string name_;
};

/// Steps of one optimizer.
class Steps : public Case {
  public:
    Steps(const std::string& name, Fields& in) : Case(name) {
        std::vector<engine::Group> groups;
        for (std::size_t left = in.integer(); left > 0; --left) groups.push_back({formula(in)});
        for (const engine::Group& group : groups) lrs_.push_back(group.formula.per_step());
        engine::StepOptions options;
        options.seed = in.integer();
        options.clear_grads = in.integer() != 0;
        step_.set_has_average(in.integer() != 0);
        rounds_at_random_ = in.integer() != 0;
        before_ = in.integer();
        steps_.resize(in.integer());
        for (double* value : {&options.clip_norm, &options.clip_value, &options.average}) {
            *value = in.real();
        }
        step_.configure(std::move(groups), {}, options);
        for (auto& [scale, norm] : steps_) {
            scale = in.real();
            norm = in.real();
        }
        parameters_.resize(in.integer());
        for (Parameter& parameter : parameters_) {
            parameter.group = in.integer();
            for (std::size_t left = in.integer(); left > 0; --left) {
                const auto role = static_cast<engine::Role>(in.integer());
                parameter.arrays.push_back({role, Array(in)});
            }
        }
    }

    bool replay() override {
        for (Parameter& parameter : parameters_) {
            for (auto& [role, array] : parameter.arrays) array.memory = array.before;
        }
        step_.set_steps(0);
        step_.average().reset();
        bool norms_are_right = true;
        for (std::size_t i = 0; i < steps_.size(); ++i) {
            prepare(i);
            const double norm = this->norm(i), expected = steps_[i].norm;
            const engine::Outcome outcome = run(i);
            norms_are_right = norms_are_right && same(norm, expected) &&
                              same(outcome.grad_norm.value_or(expected), expected);
        }
        return norms_are_right && is_right();
    }

    /// The part that may fail.
    void prepare(std::size_t i) {
        step_.set_lrs(lrs_.data(), lrs_.size(), step_.lr_version());
        step_.plan.items.clear();
        if (before_ > 0) step_.plan.items.push_back(engine::Item::resting(0, {before_}, 1, {}));
        for (Parameter& parameter : parameters_) step_.plan.items.push_back(item(parameter, i));
        step_.plan.invalidate();
        step_.prepare(engine::Nonfinite::propagate);
    }

    /// Makes the step that was prepared.
    engine::Outcome run(std::size_t i) {
        const runtime::ForkGuard no_fork;
        return step_.run(steps_[i].scale);
    }

  private:
    struct Expected {
        double scale, norm;
    };
    struct Operand {
        engine::Role role;
        Array array;
    };
    struct Parameter {
        std::size_t group;
        std::vector<Operand> arrays;  // with a gradient for each step
    };

    static engine::Formula formula(Fields& in) {
        const std::string rule = in.text();
        const auto decay = static_cast<rules::Decay>(in.integer());
        const std::size_t count = in.integer();
        const double weight_decay = in.real();
        std::map<std::string, double> by_name;
        for (std::size_t i = 0; i < count; ++i) {
            const std::string key = in.text();
            by_name[key] = in.real();
        }
        std::vector<double> values;
        for (const auto key : rules::registry()[rules::find_rule(rule)].hyperparameters) {
            values.push_back(by_name.at(std::string(key)));
        }
        const engine::FormulaOptions options{
            .decay = decay, .weight_decay = weight_decay, .bounds = {}};
        return {rule, values[0], {values.begin() + 1, values.end()}, options};
    }

    engine::Item item(Parameter& parameter, std::size_t step) const {
        std::vector<engine::Operand> operands;
        std::size_t gradients = 0;
        for (auto& [role, array] : parameter.arrays) {
            if (role == engine::Role::gradient && gradients++ != step) continue;
            if (role == engine::Role::master) {
                const auto bits =
                    array.item_size == 2 ? numbers::Master::float32 : numbers::Master::float24;
                operands.push_back(
                    {role, numbers::DType::bfloat16, array.data(), array.strides.data(), 1, bits});
            } else {
                operands.push_back(
                    {role, array.format(), array.data(), array.strides.data(), array.components()});
            }
        }
        operands[0].at_random = rounds_at_random_;
        return {parameter.group, parameter.arrays[0].array.shape, operands};
    }

    static bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

    /// The norm of the gradients, which not every step needs.
    double norm(std::size_t i) {
        step_.plan.prepare_statistics();
        const numbers::Wide scale(std::fabs(steps_[i].scale));
        return (scale * step_.plan.statistics().norm()).value();
    }

    bool is_right() const {
        return std::all_of(parameters_.begin(), parameters_.end(), [](const Parameter& parameter) {
            return std::all_of(parameter.arrays.begin(), parameter.arrays.end(),
                               [](const Operand& operand) { return operand.array.is_right(); });
        });
    }

    bool rounds_at_random_ = false;  // the parameters
    std::size_t before_ = 0;         // elements of a parameter that rests, in front of the others
    std::vector<double> lrs_;        // of the groups
    std::vector<Expected> steps_;
    std::vector<Parameter> parameters_;
    engine::Step step_;
};

class Ewma : public Case {
  public:
    Ewma(const std::string& name, Fields& in)
        : Case(name),
          axis_(in.integer()),
          bias_correction_(in.integer() != 0),
          beta_(in.real()),
          values_(in),
          out_(in) {}

    bool replay() override {
        out_.memory = out_.before;
        std::vector<engine::CopyAxis> axes;
        for (std::size_t i = 0; i < values_.shape.size(); ++i) {
            axes.push_back({values_.shape[i], values_.strides[i], out_.strides[i]});
        }
        const auto time = axes.begin() + static_cast<std::ptrdiff_t>(axis_);
        std::rotate(time, time + 1, axes.end());
        data::ewma(values_.format(), axes, values_.data(), out_.data(), beta_, bias_correction_);
        return values_.is_right() && out_.is_right();
    }

  private:
    std::size_t axis_;
    bool bias_correction_;
    double beta_;
    Array values_, out_;
};

std::vector<std::int64_t> indices_of(const Bytes& bytes) {
    std::vector<std::int64_t> indices(bytes.size() / sizeof(std::int64_t));
    if (!indices.empty()) std::memcpy(indices.data(), bytes.data(), bytes.size());
    return indices;
}

class Shuffle : public Case {
  public:
    Shuffle(const std::string& name, Fields& in)
        : Case(name),
          count_(in.integer()),
          seed_(in.integer()),
          expected_(indices_of(in.bytes())) {}

    bool replay() override {
        std::vector<std::int64_t> order(count_);
        data::shuffle(order.data(), count_, seed_);
        return order == expected_;
    }

  private:
    std::size_t count_;
    std::uint64_t seed_;
    std::vector<std::int64_t> expected_;
};

class Gather : public Case {
  public:
    Gather(const std::string& name, Fields& in)
        : Case(name), indices_(indices_of(in.bytes())), array_(in), expected_(in.bytes()) {}

    bool replay() override {
        data::Examples examples{array_.data(), array_.strides[0], array_.item_size, {}};
        for (std::size_t i = 1; i < array_.shape.size(); ++i) {
            examples.axes.push_back({array_.shape[i], array_.strides[i], 0});
        }
        Bytes out(expected_.size());
        data::gather(examples, indices_.data(), indices_.size(), out.data());
        return out == expected_ && array_.is_right();
    }

  private:
    std::vector<std::int64_t> indices_;
    Array array_;
    Bytes expected_;
};

using Cases = std::vector<std::unique_ptr<Case>>;

Cases read(const Bytes& file) {
    Cases cases;
    for (Fields in(file); in.more();) {
        const std::string kind = in.text();
        const std::string name = kind + " " + in.text();
        if (kind == "steps") cases.push_back(std::make_unique<Steps>(name, in));
        if (kind == "ewma") cases.push_back(std::make_unique<Ewma>(name, in));
        if (kind == "shuffle") cases.push_back(std::make_unique<Shuffle>(name, in));
        if (kind == "gather") cases.push_back(std::make_unique<Gather>(name, in));
    }
    if (cases.empty()) throw std::runtime_error("there is no case");
    return cases;
}

/// Replays the cases first, first + step, first + 2 * step and so on. Returns the number of wrong
/// results.
int replay(const Cases& cases, const std::string& where, std::size_t first = 0,
           std::size_t step = 1) {
    int wrong = 0;
    for (std::size_t i = first; i < cases.size(); i += step) {
        if (cases[i]->replay()) continue;
        ++wrong;
        std::printf("wrong: %s, %s\n", cases[i]->name().c_str(), where.c_str());
    }
    return wrong;
}

int replay_in_all_ways(const Cases& cases, const std::string& only) {
    if (!only.empty()) sweep::use_level(only);  // throws if it is unknown or not available
    struct Way {
        std::size_t tile, threads;
    };
    int wrong = 0;
    for (const schuss::sweep::Level* level : sweep::available_levels()) {
        if (!only.empty() && only != level->name) continue;
        sweep::use_level(level->name);
        for (const auto& [tile, threads] : {Way{16384, 1}, Way{64, 3}, Way{7, 2}}) {
            engine::set_tile_elements(tile);
            runtime::set_threads(threads);
            const std::string where = std::string(level->name) + ", tiles of " +
                                      std::to_string(tile) +
                                      ", threads: " + std::to_string(threads);
            wrong += replay(cases, where);
            std::printf("%zu cases at %s\n", cases.size(), where.c_str());
        }
    }
    return wrong;
}

int replay_at_the_same_time(const Cases& cases) {
    constexpr std::size_t count = 4;
    std::atomic<int> wrong = 0;
    std::atomic<std::size_t> left = count;
    engine::set_tile_elements(64);
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < count; ++i) {
        threads.emplace_back([&, i] {
            wrong += replay(cases, "several at the same time", i, count);
            --left;
        });
    }
    const auto levels = sweep::available_levels();
    for (std::size_t turn = 0; left > 0; ++turn) {
        runtime::set_threads(1 + turn % 5);
        sweep::use_level(levels[turn % levels.size()]->name);
        engine::set_parallel_threshold(turn % 2 == 0 ? 0 : 500);
        data::set_sharing_threshold(turn % 2 * 500);
        runtime::set_cache_size(turn / 2 % 2 * 10'000);
        engine::set_tile_elements(turn % 7 < 3 ? 64 : 48);
        runtime::wake_workers(1 + turn % 5);
        runtime::set_spin_time(turn % 3 == 0 ? std::chrono::microseconds(0)
                                             : runtime::default_spin_time);
        std::atomic<int> arrived = 0;  // each waits for the other, as the jobs of OpenBLAS do
        const auto meet = [](void* context, std::size_t, std::size_t) noexcept {
            auto& all = *static_cast<std::atomic<int>*>(context);
            for (++all; all < 2;) std::this_thread::yield();
        };
        runtime::run_concurrently({meet, &arrived, 2, true});
    }
    for (std::thread& thread : threads) thread.join();
    return wrong;
}

int replay_in_children(const Cases& cases) {
    std::vector<Steps*> steps;
    for (const auto& each : cases) {
        if (auto* const found = dynamic_cast<Steps*>(each.get())) steps.push_back(found);
    }
    if (steps.size() < 2) throw std::runtime_error("there are too few cases");
    Steps& under_way = *steps.back();
    steps.pop_back();
    engine::set_tile_elements(64);
    runtime::set_threads(3);
    under_way.prepare(0);
    std::atomic<bool> over = false;
    std::thread other([&] {
        while (!over) under_way.run(0);
    });
    int wrong = 0;
    for (std::size_t i = 0; i < 50; ++i) {
        const pid_t child = ::fork();
        if (child == 0) {
            ::alarm(60);  // a child that hangs ends
#ifdef __SANITIZE_THREAD__
            // The sanitizer may take a new thread of the child for one of the parent's, and aborts.
            runtime::set_threads(1);
#endif
            ::_exit(steps[i % steps.size()]->replay() ? 0 : 1);
        }
        int status = -1;
        if (child < 0 || ::waitpid(child, &status, 0) != child || status != 0) {
            ++wrong;
            std::printf("wrong: a child's status is %d\n", status);
        }
    }
    over = true;
    other.join();
    return wrong;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2 || argc > 3) {
        std::fputs("usage: replay FILE [level | --threads | --fork]\n", stderr);
        return 2;
    }
    try {
        std::ifstream file(argv[1], std::ios::binary);
        const std::vector<char> all{std::istreambuf_iterator<char>(file), {}};
        const auto* const begin = reinterpret_cast<const std::byte*>(all.data());
        const Cases cases = read({begin, begin + all.size()});
        const std::string mode = argc > 2 ? argv[2] : "";
        runtime::prepare_for_fork();
        engine::set_parallel_threshold(0);
        data::set_sharing_threshold(0);
        const int wrong = mode == "--threads" ? replay_at_the_same_time(cases)
                          : mode == "--fork"  ? replay_in_children(cases)
                                              : replay_in_all_ways(cases, mode);
        std::printf(wrong == 0 ? "all as the reference has it\n" : "%d wrong\n", wrong);
        return wrong == 0 ? 0 : 1;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "replay: %s\n", error.what());
        return 2;
    }
}
