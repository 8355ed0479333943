// What an optimizer does that has a part of all parameters, or makes its steps in pieces.

#include <string>

#include "bindings/gil.hpp"
#include "bindings/optimizer.hpp"

namespace schuss::bindings {

py::list Optimizer::read(py::handle grads, const std::string& call) {
    const BusyGuard guard(busy_, call, call_);
    require_source(grads, call);
    const Gradients::Session session(gradients_);
    read_gradients(grads, call);
    const engine::StepOptions& options = step_.options();
    gradients_.bind(call, options.clear_grads, options.track_norms);
    return gradients_.arrays(call);
}

engine::Outcome Optimizer::run_pieces(const StepCall& call, bool uses_sums) {
    call.pieces->prepare(step_.plan);
    const auto weights = step_.average().weights();
    engine::Outcome outcome;
    run_without_gil(step_.plan.elements(),
                    [&]() noexcept { outcome = step_.begin(call.scale, call.statistics); });
    if (!outcome.skipped()) {
        try {
            call.pieces->run(step_);
        } catch (...) {
            step_.average().set_weights(weights);
            throw;
        }
        step_.end_ranges(outcome);
    }
    if (uses_sums && !outcome.raises) sums_.forget();
    return outcome;
}

void Optimizer::require_norms() const {
    const bool has_measured = step_.plan.norms() != nullptr;
    if (has_measured && step_.last() && step_.last()->update_norm) return;
    throw py::value_error(call_ + ": the last step has no norms, expected track_norms=True");
}

py::array_t<std::uint64_t> Optimizer::norm_parts() const {
    require_norms();
    constexpr std::size_t count = engine::ExactNorm::part_count;
    py::array_t<std::uint64_t> parts(static_cast<py::ssize_t>(2 * count));
    step_.plan.norms()->update.write_parts(parts.mutable_data());
    step_.plan.norms()->parameter.write_parts(parts.mutable_data() + count);
    return parts;
}

void Optimizer::set_norms(const py::array_t<std::uint64_t, py::array::c_style>& parts) {
    require_norms();
    constexpr std::size_t count = engine::ExactNorm::part_count;
    if (parts.size() != static_cast<py::ssize_t>(2 * count)) {
        throw py::value_error(call_ + ": parts has " + std::to_string(parts.size()) +
                              " integers, expected " + std::to_string(2 * count));
    }
    step_.set_norms_of_last(engine::ExactNorm::from_parts(parts.data()).value(),
                            engine::ExactNorm::from_parts(parts.data() + count).value());
}

}  // namespace schuss::bindings
