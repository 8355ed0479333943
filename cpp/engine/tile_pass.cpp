#include "engine/tile_pass.hpp"

#include <algorithm>
#include <cstring>

#include "engine/copy.hpp"

namespace schuss::engine {
namespace {

/// A stream of random bits has this many indices.
constexpr std::uint64_t stream_size = std::uint64_t{1} << 32;

/// A pass over the tiles of a layout. The arrays of pointers that its functions take have an
/// element for each operand.
class TilePass {
  public:
    TilePass(const Layout& layout, const Pass& pass) : layout_(layout), pass_(pass) {}

    void run_flat(std::size_t tile, std::byte* const* data) const;
    void run_box(std::size_t tile, std::byte* const* data, Scratch& scratch) const;

  private:
    struct Box {
        std::size_t size[max_axes];
        std::byte* begin[max_arrays];
        std::size_t elements;
    };

    std::size_t operands() const { return layout_.operands(); }
    Box box_of(std::size_t tile, std::byte* const* data) const;
    CopyAxes copy_axes(const Box& box, std::size_t operand, bool from_scratch) const;
    void run_rows(const Box& box, std::byte* const* dense) const;
    void run_contiguous(std::byte** at, std::size_t count) const;
    void run_piece(std::byte* const* at, std::size_t count) const;
    void update(std::byte* const* at, std::size_t count) const;
    void load_parameter(std::byte* const* at, std::size_t count, double* to) const;
    void clear_gradient(std::byte* const* at, std::size_t count) const;
    std::uint64_t index_of(std::byte* const* at) const;

    const Layout& layout_;
    const Pass& pass_;
};

void TilePass::run_flat(std::size_t tile, std::byte* const* data) const {
    const TileAxis& axis = layout_.axes()[0];
    const std::size_t begin = tile * axis.box;
    std::byte* at[max_arrays];
    for (std::size_t k = 0; k < operands(); ++k) {
        // Not the item size: a tile of one element is contiguous with any stride.
        at[k] = data[k] + static_cast<std::ptrdiff_t>(begin) * axis.strides[k];
    }
    run_contiguous(at, std::min(axis.box, axis.size - begin));
}

void TilePass::run_box(std::size_t tile, std::byte* const* data, Scratch& scratch) const {
    const Box box = box_of(tile, data);
    std::byte* dense[max_arrays];
    std::byte* free = scratch.data();
    for (std::size_t k = 0; k < operands(); ++k) {
        const OperandInfo& operand = layout_.operand(k);
        dense[k] = box.begin[k];
        if (operand.access != Access::buffered) continue;
        dense[k] = free;
        free += whole_cache_lines(box.elements * operand.item_size);
        const bool is_read = operand.role != Role::copy && pass_.updates();
        const bool is_measured = pass_.norms != nullptr && k == pass_.parameter();
        if (!is_read && !is_measured) continue;
        CopyAxes axes = copy_axes(box, k, false);
        copy_box(axes, operand.item_size, box.begin[k], dense[k]);
    }

    if (layout_.has_rows()) {
        run_rows(box, dense);
    } else {
        std::byte* at[max_arrays];
        std::copy_n(dense, operands(), at);
        run_contiguous(at, box.elements);
    }

    for (std::size_t k = 0; k < operands(); ++k) {
        const OperandInfo& operand = layout_.operand(k);
        const bool is_written =
            operand.role == Role::gradient ? pass_.clear_gradients : pass_.updates();
        if (!is_written || operand.access != Access::buffered) continue;
        CopyAxes axes = copy_axes(box, k, true);
        copy_box(axes, operand.item_size, dense[k], box.begin[k]);
    }
}

/// The box of a tile, and where it begins in each operand.
TilePass::Box TilePass::box_of(std::size_t tile, std::byte* const* data) const {
    Box box;
    box.elements = 1;
    std::copy_n(data, operands(), box.begin);
    const std::vector<TileAxis>& axes = layout_.axes();
    for (std::size_t i = axes.size(); i-- > 0;) {
        const TileAxis& axis = axes[i];
        const std::size_t first = tile % axis.boxes() * axis.box;
        tile /= axis.boxes();
        box.size[i] = std::min(axis.box, axis.size - first);
        box.elements *= box.size[i];
        for (std::size_t k = 0; k < operands(); ++k) {
            box.begin[k] += static_cast<std::ptrdiff_t>(first) * axis.strides[k];
        }
    }
    return box;
}

/// The axes of a copy between an operand and its scratch, which has the box's dense order.
CopyAxes TilePass::copy_axes(const Box& box, std::size_t operand, bool from_scratch) const {
    CopyAxes copied;
    auto dense = static_cast<std::ptrdiff_t>(layout_.operand(operand).item_size);
    const std::vector<TileAxis>& axes = layout_.axes();
    for (std::size_t i = axes.size(); i-- > 0;) {
        if (box.size[i] == 1) continue;
        const std::ptrdiff_t stride = axes[i].strides[operand];
        copied.at[copied.count++] = from_scratch ? CopyAxis{box.size[i], dense, stride}
                                                 : CopyAxis{box.size[i], stride, dense};
        dense *= static_cast<std::ptrdiff_t>(box.size[i]);
    }
    return copied;
}

/// Runs along the rows of a box, one after the other.
void TilePass::run_rows(const Box& box, std::byte* const* dense) const {
    const std::vector<TileAxis>& axes = layout_.axes();
    const std::size_t inner = axes.size() - 1;
    std::size_t index[max_axes] = {};
    std::byte* row[max_arrays];
    std::copy_n(dense, operands(), row);
    for (;;) {
        std::byte* at[max_arrays];
        std::copy_n(row, operands(), at);
        run_contiguous(at, box.size[inner]);

        std::size_t next = inner;  // the axis along which the next row follows
        while (next > 0 && ++index[next - 1] == box.size[next - 1]) index[--next] = 0;
        if (next == 0) return;
        for (std::size_t k = 0; k < operands(); ++k) {
            const OperandInfo& operand = layout_.operand(k);
            if (operand.access != Access::rowwise) {
                row[k] += box.size[inner] * operand.item_size;
                continue;
            }
            row[k] += axes[next - 1].strides[k];
            for (std::size_t i = next; i < inner; ++i) {
                row[k] -= static_cast<std::ptrdiff_t>(box.size[i] - 1) * axes[i].strides[k];
            }
        }
    }
}

/// Runs along contiguous memory, piece by piece. Advances the pointers.
void TilePass::run_contiguous(std::byte** at, std::size_t count) const {
    for (;;) {
        std::size_t piece = count;
        if (layout_.has_extras() || pass_.update.is_bounded || pass_.norms != nullptr) {
            piece = std::min(piece, elements_per_piece / layout_.components());
        }
        if (layout_.rounded_state() != nullptr) {
            const std::uint64_t left_in_stream = stream_size - index_of(at) % stream_size;
            piece = std::min(piece, static_cast<std::size_t>(left_in_stream));
        }
        run_piece(at, piece);
        count -= piece;
        if (count == 0) return;
        for (std::size_t k = 0; k < operands(); ++k) at[k] += piece * layout_.operand(k).item_size;
    }
}

void TilePass::run_piece(std::byte* const* at, std::size_t count) const {
    Norms* const norms = pass_.norms;
    if (norms != nullptr) load_parameter(at, count, norms->before);
    if (pass_.updates()) update(at, count);
    if (pass_.clear_gradients) clear_gradient(at, count);
    if (norms == nullptr) return;
    const std::size_t values = count * layout_.components();
    norms->parameter.add(norms->before, values);
    if (!pass_.updates() || pass_.rests) return;
    load_parameter(at, count, norms->after);
    for (std::size_t i = 0; i < values; ++i) norms->after[i] -= norms->before[i];
    norms->update.add(norms->after, values);
}

void TilePass::load_parameter(std::byte* const* at, std::size_t count, double* to) const {
    const sweep::Format& loops = pass_.level.format(layout_.operand(pass_.parameter()).dtype);
    const auto load = loops.load[static_cast<int>(numbers::DType::float64)];
    load(at[pass_.parameter()], to, count * layout_.components());
}

/// Runs the kernel, and writes the average and the copy.
void TilePass::update(std::byte* const* at, std::size_t count) const {
    sweep::Stream streams[rules::max_states];
    if (layout_.rounded_state() != nullptr) {
        const std::uint64_t first = index_of(at);
        for (int k = 0; k < rules::max_states; ++k) streams[k] = {pass_.streams[k], first};
    }
    const std::size_t components = layout_.components();
    const std::size_t updated = pass_.update.formats.moduli ? count : count * components;
    pass_.level.run(pass_.update, at, updated, streams);
    if (!layout_.has_extras()) return;
    for (std::size_t k = rules::first_state_operand; k < operands(); ++k) {
        const OperandInfo& operand = layout_.operand(k);
        std::byte* const parameter = at[rules::parameter_operand];
        if (operand.role == Role::average && pass_.average != nullptr) {
            std::byte* const averaged[] = {at[k], parameter};
            pass_.level.run(*pass_.average, averaged, count * components, nullptr);
        }
        if (operand.role == Role::copy) {
            const sweep::Format& loops = pass_.level.format(operand.dtype);
            const bool is_streamed = pass_.update.prefetches && operand.access != Access::buffered;
            (is_streamed ? loops.stream : loops.store)(parameter, at[k], count);
        }
    }
}

void TilePass::clear_gradient(std::byte* const* at, std::size_t count) const {
    constexpr std::size_t gradient = rules::gradient_operand;
    std::memset(at[gradient], 0, count * layout_.operand(gradient).item_size);
}

/// The index of an element among those of all parameters, in the order of their memory.
std::uint64_t TilePass::index_of(std::byte* const* at) const {
    constexpr std::size_t state = rules::first_state_operand;
    const auto bytes = static_cast<std::size_t>(at[state] - layout_.rounded_state());
    return pass_.first + bytes / layout_.operand(state).item_size;
}

}  // namespace

void run_pass(const Layout& layout, std::size_t tile, std::byte* const* data, const Pass& pass,
              Scratch& scratch) noexcept {
    const TilePass all(layout, pass);
    layout.is_flat() ? all.run_flat(tile, data) : all.run_box(tile, data, scratch);
}

}  // namespace schuss::engine
