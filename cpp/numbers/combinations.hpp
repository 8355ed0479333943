// The combinations of number formats that kernels are compiled for, numbered for their tables.
//
// Kernels read gradients in the compute format. Gradients in another format are widened piece by
// piece before the kernel (sweep/pieces-inl.hpp): a kernel for each of their formats would multiply
// the size of the library and the time to build it. Only bfloat16 has kernels of its own. Measured
// with widened ones: a step of 65,536 elements took 1.19 (SGD) and 1.11 (Adam) of its time for
// float32 parameters, and 1.09 and 1.04 for bfloat16 parameters. With float16 it took 0.92 to 1.07.
#pragma once

#include <cstdint>

#include "numbers/dtype.hpp"

namespace schuss::numbers {

/// The number formats of a parameter, its gradient and its states.
struct Formats {
    DType parameter, gradient, state;
    // Whether the elements are complex numbers, whose second moments are real: averages of their
    // squared moduli. Such a parameter is computed in its own format, and so is its state.
    bool moduli = false;
    // The bits that the parameter lacks, which are kept along it.
    Master master = Master::none;
    // Whether the parameter, in bfloat16 and without such bits, is rounded at random.
    bool rounds_parameter = false;
};

/// The formats in which a kernel updates such arrays, if it reads gradients in their own format.
/// What differs is converted before and after it (sweep/pieces-inl.hpp).
constexpr Formats converted(Formats formats) {
    const bool has_blocks = formats.state == DType::square8;
    if (has_blocks || formats.master != Master::none || formats.rounds_parameter) {
        formats.parameter = compute_dtype(formats.parameter);
    }
    formats.master = Master::none;
    formats.rounds_parameter = false;
    return formats;
}

/// Whether there is a kernel for the formats. States are stored in the compute format of the
/// parameter, or in bfloat16 or blocks of codes in place of float32. There is none for parameters
/// with a master, or for those that are rounded at random. With blocks, the other arrays are in the
/// compute format.
constexpr bool has_kernel(const Formats& formats) {
    const auto& [parameter, gradient, state, moduli, master, rounds_parameter] = formats;
    const DType compute = compute_dtype(parameter);
    const auto is_compute_or_bfloat16 = [compute](DType dtype) {
        return dtype == compute || (dtype == DType::bfloat16 && compute == DType::float32);
    };
    if (state == DType::square8) return parameter == DType::float32 && gradient == DType::float32;
    const bool widens = gradient != compute && parameter == DType::float16;
    if (parameter == DType::square8 || master != Master::none || rounds_parameter) return false;
    if (moduli) return gradient == compute;
    return is_compute_or_bfloat16(gradient) && is_compute_or_bfloat16(state) && !widens;
}

/// The combinations that have a kernel, and the index of each among them; -1 for the others.
struct Combinations {
    int count = 0;
    Formats at[dtype_count * dtype_count * dtype_count] = {};
    std::int8_t index[dtype_count][dtype_count][dtype_count] = {};
};

inline constexpr Combinations combinations = [] {
    Combinations result;
    for (int p = 0; p < dtype_count; ++p) {
        for (int g = 0; g < dtype_count; ++g) {
            for (int s = 0; s < dtype_count; ++s) {
                const Formats formats{static_cast<DType>(p), static_cast<DType>(g),
                                      static_cast<DType>(s)};
                result.index[p][g][s] = -1;
                if (!has_kernel(formats)) continue;
                result.index[p][g][s] = static_cast<std::int8_t>(result.count);
                result.at[result.count++] = formats;
            }
        }
    }
    return result;
}();

/// The index of a combination; -1 if it has no kernel.
constexpr int kernel_index(const Formats& formats) {
    if (formats.master != Master::none || formats.rounds_parameter) return -1;
    return combinations.index[static_cast<int>(formats.parameter)]
                             [static_cast<int>(formats.gradient)][static_cast<int>(formats.state)];
}

}  // namespace schuss::numbers
