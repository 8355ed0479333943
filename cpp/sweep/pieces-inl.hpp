// Updates that a kernel cannot do alone: gradients in another format than the computation, a
// gradient scale that T cannot hold, and a learning rate that T cannot hold. They are run piece by
// piece on copies that stay in the first-level cache. Included by level-inl.hpp in its anonymous
// namespace.
#pragma once

constexpr std::size_t piece_size = 1024;

/// The values of T in an element of the parameter.
inline std::size_t components_of(const Call& call) {
    return call.formats.moduli ? 2 : 1;
}

/// Runs a kernel whose learning rate T cannot hold on one piece: computes the update from zero, and
/// multiplies it by the rest of the rate. This is rare, so the kernels do not handle it. The
/// gradients in operands[1] are overwritten.
template <typename T>
[[gnu::noinline]] void update_finely(const Call& call, const Common<T>& c,
                                     std::byte* const* operands, std::size_t n,
                                     const Stream* streams) {
    const DType compute = numbers::compute_dtype(call.formats.parameter);
    const Format& stored = formats[static_cast<int>(call.formats.parameter)];
    const std::size_t values = n * components_of(call);
    T parameter[piece_size], update[piece_size];
    T* const gradient = reinterpret_cast<T*>(operands[1]);
    stored.load[static_cast<int>(compute)](operands[0], parameter, values);
    for (std::size_t i = 0; i < values; ++i) {
        gradient[i] = GradientTransform::transform(gradient[i], c.gradient);
        WeightDecay::apply(call.decay, parameter[i], gradient[i], c.decay);
        update[i] = -T{0};  // a sum leaves it as it is, even -0
    }
    alignas(T) std::byte rest[rules::max_coefficients * sizeof(T)];
    const Common<T> neutral = {{1, 1, T(HUGE_VAL)}, {0, 1}, 1};
    __builtin_memcpy(rest, call.coefficients, sizeof rest);
    __builtin_memcpy(rest, &neutral, sizeof neutral);
    std::byte* from_zero[rules::max_operands];
    for (int k = 0; k < rules::first_state_operand + count(call.rule->states); ++k)
        from_zero[k] = operands[k];
    from_zero[0] = reinterpret_cast<std::byte*>(update);
    call.from_zero(from_zero, n, rest, streams);
    for (std::size_t i = 0; i < values; ++i) parameter[i] = parameter[i] + update[i] * c.fine;
    stored.store(parameter, operands[0], values);
}

template <typename T>
void run_in_pieces(const Call& call, std::byte* const* operands, std::size_t n,
                   const Stream* streams) {
    const auto& [parameter_format, gradient_format, state_format, moduli] = call.formats;
    const DType compute = numbers::compute_dtype(parameter_format);
    const auto widen = formats[static_cast<int>(gradient_format)].load[static_cast<int>(compute)];
    const int states = count(call.rule->states);
    const std::size_t components = components_of(call);
    Common<T> c;
    __builtin_memcpy(&c, call.coefficients, sizeof c);
    alignas(64) T gradient[piece_size];
    const std::size_t longest = piece_size / components;
    for (std::size_t done = 0; done < n; done += longest) {
        const std::size_t left = n - done < longest ? n - done : longest;
        const std::size_t values_done = done * components, values_left = left * components;
        widen(operands[1] + values_done * numbers::size_of(gradient_format), gradient, values_left);
        for (std::size_t i = 0; c.gradient.power != 1 && i < values_left; ++i) {
            gradient[i] = GradientTransform::apply_power(gradient[i], c.gradient);
        }
        std::byte* piece[rules::max_operands] = {
            operands[0] + values_done * numbers::size_of(parameter_format),
            reinterpret_cast<std::byte*>(gradient)};
        Stream stream[rules::max_states] = {};
        for (int k = 0; k < states; ++k) {
            const std::size_t first = call.rule->states.at[k].nonnegative ? done : values_done;
            piece[2 + k] = operands[2 + k] + first * numbers::size_of(state_format);
            if (state_format != compute) stream[k] = {streams[k].key, streams[k].first + done};
        }
        if (c.fine == 1) {
            call.kernel(piece, left, call.coefficients, stream);
        } else {
            update_finely(call, c, piece, left, stream);
        }
    }
}
