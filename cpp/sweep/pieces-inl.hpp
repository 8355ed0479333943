// Updates that a kernel cannot do alone: gradients in another format than the computation (with
// blocks, also parameters), parameters with a master or rounded at random, a gradient scale that T
// cannot hold, and a learning rate that T cannot hold. They are run piece by piece on copies
// that stay in the first-level cache. Included by level-inl.hpp in its anonymous namespace.
#pragma once

constexpr std::size_t piece_size = 1024;

/// The values of T in an element of the parameter.
inline std::size_t components_of(const Call& call) {
    return call.formats.moduli ? 2 : 1;
}

/// Runs a kernel whose learning rate T cannot hold on one piece: computes the update from zero, and
/// multiplies it by the rest of the rate. This is rare, so the kernels do not handle it. The
/// gradients, which are in T, are overwritten.
template <typename T>
[[gnu::noinline]] void update_finely(const Call& call, const Common<T>& c,
                                     std::byte* const* operands, std::size_t n,
                                     const Stream* streams) {
    const std::size_t values = n * components_of(call);
    T parameter[piece_size], update[piece_size];
    T* const gradient = reinterpret_cast<T*>(operands[1]);
    load_as<T>(call.read.parameter)(operands[0], parameter, values);
    for (std::size_t i = 0; i < values; ++i) {
        gradient[i] = GradientTransform::transform(gradient[i], c.gradient);
        WeightDecay::apply(call.decay, parameter[i], gradient[i], c.decay);
        update[i] = -T{0};  // a sum leaves it as it is, even -0
    }
    alignas(T) std::byte rest[rules::max_coefficients * sizeof(T)];
    const Common<T> neutral = {{1, 1, T(HUGE_VAL)}, {0, 1}, 1};
    __builtin_memcpy(rest, call.coefficients, sizeof rest);
    __builtin_memcpy(rest, &neutral, sizeof neutral);
    std::byte* from_zero[rules::max_operands] = {reinterpret_cast<std::byte*>(update), operands[1]};
    for (int k = 0; k < count(*call.states); ++k) from_zero[2 + k] = operands[2 + k];
    call.decoupled(from_zero, n, rest, streams, call.prefetches, nullptr);
    for (std::size_t i = 0; i < values; ++i) parameter[i] = parameter[i] + update[i] * c.fine;
    loops_of(call.read.parameter).store(parameter, operands[0], values);
}

/// The copies of one piece that the kernel reads in place of the arrays.
template <typename T>
struct Piece {
    alignas(64) T gradient[piece_size];
    T parameter[piece_size];
};

template <typename T>
void run_in_pieces(const Call& call, std::byte* const* operands, std::size_t n,
                   const Stream* streams) {
    const auto& formats_of = call.formats;
    const std::size_t components = components_of(call);
    const std::size_t parameter_size = components * loops_of(formats_of.parameter).size;
    const std::size_t gradient_size = components * loops_of(formats_of.gradient).size;
    const std::size_t low_size = numbers::size_of(formats_of.master);
    const bool converts_parameter = call.read.parameter != formats_of.parameter;
    const bool is_rounded = formats_of.state != compute_dtype<T>;
    const int states = count(*call.states);
    const Convert widen = load_as<T>(formats_of.gradient);
    Common<T> c;
    __builtin_memcpy(&c, call.coefficients, sizeof c);
    if (c.gradient.power == 1 && c.fine == 1 && converts_in_blocks(call)) {
        return call.kernel(operands, n, call.coefficients, streams, call.prefetches, &call);
    }
    Piece<T> scratch;
    const std::size_t longest = piece_size / components;
    for (std::size_t done = 0; done < n; done += longest) {
        const std::size_t left = n - done < longest ? n - done : longest;
        const std::size_t values = left * components;
        std::byte* const parameter = operands[0] + done * parameter_size;
        std::byte* const low = low_size == 0 ? nullptr : operands[2 + states] + done * low_size;
        std::byte* const gradient = operands[1] + done * gradient_size;
        std::byte* piece[rules::max_operands] = {parameter, gradient};
        Stream stream[rules::max_states + 1] = {};
        for (int k = 0; k < states; ++k) {
            const std::size_t width = call.states->at[k].nonnegative ? 1 : components;
            const std::size_t at = done * width / numbers::block_of(formats_of.state);
            piece[2 + k] = operands[2 + k] + at * loops_of(formats_of.state).size;
            if (is_rounded) stream[k] = {streams[k].key, streams[k].first + done};
        }
        if (call.copies_gradients) {
            const std::size_t bytes = left * gradient_size;
            if (call.prefetches) prefetch(gradient, bytes, bytes);  // the next piece
            widen(gradient, scratch.gradient, values);
            for (std::size_t i = 0; c.gradient.power != 1 && i < values; ++i) {
                scratch.gradient[i] =
                    GradientTransform::apply_power(scratch.gradient[i], c.gradient);
            }
            piece[1] = reinterpret_cast<std::byte*>(scratch.gradient);
        }
        if constexpr (sizeof(T) == sizeof(float)) {
            if (converts_parameter) {
                load_parameter(call, parameter, low, values, scratch.parameter);
                piece[0] = reinterpret_cast<std::byte*>(scratch.parameter);
            }
        }
        if (c.fine == 1) {
            call.kernel(piece, left, call.coefficients, stream, call.prefetches, nullptr);
        } else {
            update_finely(call, c, piece, left, stream);
        }
        if constexpr (sizeof(T) == sizeof(float)) {
            if (converts_parameter) {
                Stream own = {};
                if (formats_of.master != Master::float32) {
                    own = {streams[rules::max_states].key, streams[rules::max_states].first + done};
                }
                store_parameter(call, scratch.parameter, values, own, parameter, low);
            }
        }
    }
}
