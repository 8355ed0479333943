// What an instruction set level provides: a table with one loop for each rule, decay and
// combination of number formats.
#pragma once

#include <cstddef>
#include <cstdint>

#include "numbers/combinations.hpp"
#include "rules/rule.hpp"

namespace schuss::sweep {

/// The random bits that round an array: the key of their stream, and the index of the first
/// element.
struct Stream {
    std::uint64_t key, first;
};

struct Call;

/// Updates count elements. `operands` are the parameter, the gradient and the states of the rule;
/// each is aligned and contiguous, and none overlaps another. `coefficients` are values of the
/// compute type in the order of rules::coefficients; the power of the scale and `fine` are not
/// used. `streams` has one entry for each state if states are rounded stochastically; none crosses
/// a multiple of 2^32, except for blocks. `prefetches`: whether the operands' memory is fetched
/// ahead, which may reach past their ends. converted: only for kernels whose states are blocks of
/// codes, which compute in float32: the call whose parameters or gradients have another format;
/// nullptr for others.
using Kernel = void (*)(std::byte* const* operands, std::size_t count, const void* coefficients,
                        const Stream* streams, bool prefetches, const Call* converted);

/// Consecutive steps with zero gradients and the same coefficients, which are those of a kernel.
/// Their scale is 1, -1 or NaN: a zero becomes 0, -0 or NaN.
struct ZeroSteps {
    const void* coefficients;
    std::uint64_t steps;
};

/// How many steps to make before it is tested whether elements are at rest, and at rest before it
/// is tested again.
struct Looks {
    std::uint64_t first, at_rest;
};

/// When elements are at rest: an update with these coefficients and a zero gradient bounds that of
/// every step to come (see engine::RestBound).
template <typename T>
struct Rest : Looks {
    T coefficients[rules::max_coefficients];
    T reach;   // a parameter rests if its magnitude exceeds this many times the update
    T lowest;  // and is not below this: it must not become zero while it decays
};

/// Makes many steps with zero gradients of count elements, which stay in registers: the bits are
/// those of a call of the kernel for each step, for arrays in the compute type. `operands` are a
/// kernel's; the gradient is not read. rest: a Rest of the compute type for all of `runs`, nullptr
/// if there is none. What provably changes no bits is left out then.
using Replay = void (*)(std::byte* const* operands, std::size_t count, const ZeroSteps* runs,
                        std::size_t run_count, const Looks* rest);

/// The kernels of one rule.
struct Kernels {
    rules::States states;
    Kernel at[rules::decay_count][numbers::combinations.count];
    Kernel of_moduli[rules::decay_count][numbers::compute_dtype_count];
    Replay replay[rules::decay_count][numbers::compute_dtype_count];  // nullptr without parameters

    /// The kernel for the formats; nullptr if there is none.
    Kernel of(rules::Decay decay, const numbers::Formats& formats) const {
        const auto row = static_cast<int>(decay);
        if (formats.moduli) {
            const bool reads_own = formats.gradient == formats.parameter;
            return reads_own ? of_moduli[row][static_cast<int>(formats.parameter)] : nullptr;
        }
        const int index = kernel_index(formats);
        return index < 0 ? nullptr : at[row][index];
    }
};

/// A rule that updates arrays in these formats.
struct Call {
    const rules::States* states = nullptr;
    rules::Decay decay = rules::Decay::decoupled;
    numbers::Formats formats = {};
    Kernel kernel = nullptr;
    const void* coefficients = nullptr;

    /// Whether the kernel cannot do it alone. It then reads these formats, into which the arrays
    /// are converted, and `decoupled` is the kernel for parameters in the compute type and
    /// decoupled weight decay. copies_gradients: whether the gradients are converted or multiplied.
    bool in_pieces = false;
    numbers::Formats read = {};
    bool copies_gradients = false;
    Kernel decoupled = nullptr;

    /// Whether the arrays are fetched ahead, since they do not fit the cache.
    bool prefetches = false;

    /// Whether the parameters are put between bounds, and the bounds.
    bool is_bounded = false;
    double low = 0, high = 0;
};

/// Makes a call piece by piece: converts the arrays, and uses the power of the scale and `fine`.
using RunInPieces = void (*)(const Call& call, std::byte* const* operands, std::size_t count,
                             const Stream* streams);

/// Writes the values of bfloat16 parameters whose other bits are in `low`.
using Join = void (*)(const void* high, const void* low, float* out, std::size_t count);

/// The squares of a gradient are summed in blocks of stats_block elements. Element i of a block is
/// added to lane i % stats_lanes.
inline constexpr std::size_t stats_block = 4096;
inline constexpr std::size_t stats_lanes = 16;

/// Adds the squares of elements to the lanes, beginning with the given lane; the scaled variant
/// multiplies the elements by scale first. Returns whether all elements are finite.
using SumSquares = bool (*)(const void* elements, std::size_t count, std::size_t lane,
                            double* lanes, double scale);

/// Writes the sum of the squares of each block, which is not finite if an element is not. The bits
/// are those of `SumSquares` and `sum_of_lanes`. in_pairs: whether the blocks are in the cache.
using SumBlocks = void (*)(const void* elements, std::size_t blocks, bool in_pairs, double* sums);

/// Sums the lanes of a block in a fixed order. Overwrites them.
static inline double sum_of_lanes(double* lanes) {
    for (std::size_t half = stats_lanes / 2; half > 0; half /= 2) {
        for (std::size_t k = 0; k < half; ++k) lanes[k] = lanes[k] + lanes[k + half];
    }
    return lanes[0];
}

/// Converts count elements.
using Convert = void (*)(const void* from, void* to, std::size_t count);

/// Writes count elements in a compute type: zero plus those of each row, one after the other. The
/// rows are `stride` bytes apart.
using SumRows = void (*)(const std::byte* elements, std::size_t stride, const std::uint32_t* rows,
                         std::size_t row_count, std::size_t count, void* to);

/// Puts count elements between bounds, which are rounded to the compute type. NaN stays NaN.
using PutBetween = void (*)(void* elements, std::size_t count, double low, double high);

/// The loops of one number format.
struct Format {
    std::size_t size;
    SumSquares sum_squares, sum_squares_scaled;
    SumBlocks sum_blocks;
    Convert load[numbers::compute_dtype_count];  // to each type that holds all values; else nullptr
    Convert store;                               // from the compute type
    Convert stream;  // the same, but memory that is not in the cache is not read first
    PutBetween put_between;
    SumRows sum_rows[numbers::compute_dtype_count];  // in the types of `load`
};

/// Whether the AVX-512 level computes square roots by multiplications, where those are faster than
/// the divider. The bits are the same.
extern bool multiplies_for_roots;

/// One instruction set: the processor features that its code may use, its kernels in the order of
/// the rule registry, and its loops for each number format.
struct Level {
    const char* name;
    std::uint64_t features;
    const Kernels* rules;
    RunInPieces run_in_pieces[numbers::compute_dtype_count];
    const Format* formats;
    Join join[numbers::master_count];  // nullptr where there is no master

    const Format& format(numbers::DType dtype) const { return formats[static_cast<int>(dtype)]; }

    /// Makes a call. operands: as those of a kernel, but in the formats of the call, and then the
    /// master if there is one. Blocks of a state are whole: the first element begins one, and only
    /// the last one may have fewer elements. streams: one for each of rules::max_states states,
    /// and one for the parameter, if one of them is rounded at random. Only those of blocks, of
    /// masters and of the parameter may cross a multiple of 2^32.
    void run(const Call& call, std::byte* const* operands, std::size_t count,
             const Stream* streams) const {
        if (call.in_pieces) {
            const numbers::DType compute = numbers::compute_dtype(call.formats.parameter);
            run_in_pieces[static_cast<int>(compute)](call, operands, count, streams);
        } else {
            call.kernel(operands, count, call.coefficients, streams, call.prefetches, nullptr);
        }
        // With a master, the bounds were applied to the values before they were rounded.
        if (!call.is_bounded || call.formats.master != numbers::Master::none) return;
        format(call.formats.parameter).put_between(operands[0], count, call.low, call.high);
    }
};

}  // namespace schuss::sweep
