// Updates that a kernel cannot do alone: gradients in another format than the computation, a
// gradient scale that T cannot hold, and a learning rate that T cannot hold. They are run piece by
// piece on copies that stay in the first-level cache. Included by level-inl.hpp in its anonymous
// namespace.
#pragma once

constexpr std::size_t piece_size = 1024;

/// Runs a kernel whose learning rate T cannot hold on one piece: computes the update from zero, and
/// multiplies it by the rest of the rate. This is rare, so the kernels do not handle it. The
/// gradients in operands[1] are overwritten.
template <typename T>
[[gnu::noinline]] void update_finely(const Call& call, const Common<T>& c,
                                     std::byte* const* operands, std::size_t n,
                                     const Stream* streams) {
    const DType compute = numbers::compute_dtype(call.formats.parameter);
    const Format& stored = formats[static_cast<int>(call.formats.parameter)];
    T parameter[piece_size], update[piece_size];
    T* const gradient = reinterpret_cast<T*>(operands[1]);
    stored.load[static_cast<int>(compute)](operands[0], parameter, n);
    for (std::size_t i = 0; i < n; ++i) {
        gradient[i] = GradientTransform::transform(gradient[i], c.gradient);
        WeightDecay::apply(call.decay, parameter[i], gradient[i], c.decay);
        update[i] = -T{0};  // a sum leaves it as it is, even -0
    }
    alignas(T) std::byte rest[rules::max_coefficients * sizeof(T)];
    const Common<T> neutral = {{1, 1, T(HUGE_VAL)}, {0, 1}, 1};
    __builtin_memcpy(rest, call.coefficients, sizeof rest);
    __builtin_memcpy(rest, &neutral, sizeof neutral);
    std::byte* from_zero[rules::max_operands];
    for (int k = 0; k < rules::first_state_operand + call.rule->states; ++k)
        from_zero[k] = operands[k];
    from_zero[0] = reinterpret_cast<std::byte*>(update);
    call.rule->of(Decay::decoupled, {compute, compute, call.formats.state})(from_zero, n, rest,
                                                                            streams);
    for (std::size_t i = 0; i < n; ++i) parameter[i] = parameter[i] + update[i] * c.fine;
    stored.store(parameter, operands[0], n);
}

template <typename T>
void run_in_pieces(const Call& call, std::byte* const* operands, std::size_t n,
                   const Stream* streams) {
    const auto& [parameter_format, gradient_format, state_format] = call.formats;
    const DType compute = numbers::compute_dtype(parameter_format);
    const auto widen = formats[static_cast<int>(gradient_format)].load[static_cast<int>(compute)];
    const int states = call.rule->states;
    Common<T> c;
    __builtin_memcpy(&c, call.coefficients, sizeof c);
    alignas(64) T gradient[piece_size];
    for (std::size_t done = 0; done < n; done += piece_size) {
        const std::size_t left = n - done < piece_size ? n - done : piece_size;
        widen(operands[1] + done * numbers::size_of(gradient_format), gradient, left);
        for (std::size_t i = 0; c.gradient.power != 1 && i < left; ++i) {
            gradient[i] = GradientTransform::apply_power(gradient[i], c.gradient);
        }
        std::byte* piece[rules::max_operands] = {
            operands[0] + done * numbers::size_of(parameter_format),
            reinterpret_cast<std::byte*>(gradient)};
        Stream stream[rules::max_states] = {};
        for (int k = 0; k < states; ++k) {
            piece[2 + k] = operands[2 + k] + done * numbers::size_of(state_format);
            if (state_format != compute) stream[k] = {streams[k].key, streams[k].first + done};
        }
        if (c.fine == 1) {
            call.kernel(piece, left, call.coefficients, stream);
        } else {
            update_finely(call, c, piece, left, stream);
        }
    }
}
