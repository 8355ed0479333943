#include "engine/tile_pass.hpp"

#include <algorithm>
#include <cstring>

#include "engine/copy.hpp"
#include "engine/rowwise.hpp"

namespace schuss::engine {
namespace {

/// A stream of random bits has this many indices.
constexpr std::uint64_t stream_size = std::uint64_t{1} << 32;

/// A pass over the tiles of a layout. The arrays of pointers that its functions take have an
/// element for each operand.
class TilePass {
  public:
    TilePass(const Layout& layout, const Pass& pass) : layout_(layout), pass_(pass) {}

    void run_flat(std::size_t begin, std::size_t end, std::byte* const* data) const;
    void run_run(std::size_t tile, std::byte* const* data, Scratch& scratch) const;
    void run_box(std::size_t tile, std::byte* const* data, Scratch& scratch) const;

  private:
    struct Box {
        std::size_t size[max_axes];
        std::byte* begin[max_arrays];
        std::size_t elements;
    };

    std::size_t operands() const { return layout_.operands(); }
    bool is_read(std::size_t operand) const;
    bool is_written(std::size_t operand) const;
    Box box_of(std::size_t tile, std::byte* const* data) const;
    CopyAxes copy_axes(const Box& box, std::size_t operand, bool from_scratch) const;
    void run_rows(const Box& box, std::byte* const* dense) const;
    void run_contiguous(std::byte** at, std::size_t count, std::uint64_t begin) const;
    void run_by_row(std::byte** at, std::size_t count, std::uint64_t begin) const;
    void run_piece(std::byte* const* at, std::size_t count, std::uint64_t begin) const;
    void update(std::byte* const* at, std::size_t count, std::uint64_t begin) const;
    void update_average(std::byte* average, std::byte* const* at, std::size_t count) const;
    template <class Use>
    void with_joined(std::byte* const* at, std::size_t count, const Use& use) const;
    void load_parameter(std::byte* const* at, std::size_t count, double* to) const;
    void clear_gradient(std::byte* const* at, std::size_t count) const;
    std::uint64_t place_of(std::byte* const* at) const;

    const Layout& layout_;
    const Pass& pass_;
};

/// Whether a pass reads an operand, and whether it writes it.
bool TilePass::is_read(std::size_t operand) const {
    const Role role = layout_.operand(operand).role;
    const bool is_measured =
        pass_.norms != nullptr && (operand == pass_.parameter() || role == Role::master);
    return is_measured || (role != Role::copy && pass_.updates());
}

bool TilePass::is_written(std::size_t operand) const {
    const Role role = layout_.operand(operand).role;
    if (role == Role::gradient) return pass_.clear_gradients;
    return pass_.updates() && !(role == Role::master && pass_.rests);
}

void TilePass::run_flat(std::size_t begin, std::size_t end, std::byte* const* data) const {
    std::byte* at[max_arrays];
    for (std::size_t k = 0; k < operands(); ++k) {
        at[k] = data[k] + layout_.operand(k).bytes(begin);
    }
    run_contiguous(at, end - begin, begin);
}

void TilePass::run_run(std::size_t tile, std::byte* const* data, Scratch& scratch) const {
    const std::size_t begin = tile * layout_.run();
    const std::size_t count = std::min(layout_.run(), layout_.elements() - begin);
    std::byte *dense[max_arrays], *at[max_arrays];
    std::byte* free = scratch.data();
    for (std::size_t k = 0; k < operands(); ++k) {
        const OperandInfo& operand = layout_.operand(k);
        dense[k] = data[k] + operand.bytes(begin);
        if (operand.access != Access::buffered) continue;
        dense[k] = free;
        free += whole_cache_lines(operand.bytes(count));
        if (!is_read(k)) continue;
        layout_.order(k).gather(data[k] - layout_.offset(k), begin, count, dense[k]);
    }
    std::copy_n(dense, operands(), at);
    run_contiguous(at, count, begin);
    for (std::size_t k = 0; k < operands(); ++k) {
        if (layout_.operand(k).access != Access::buffered || !is_written(k)) continue;
        layout_.order(k).scatter(dense[k], begin, count, data[k] - layout_.offset(k));
    }
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
        if (!is_read(k)) continue;
        CopyAxes axes = copy_axes(box, k, false);
        copy_box(axes, operand.item_size, box.begin[k], dense[k]);
    }

    if (layout_.has_rows()) {
        run_rows(box, dense);
    } else {
        std::byte* at[max_arrays];
        std::copy_n(dense, operands(), at);
        run_contiguous(at, box.elements, place_of(at));
    }

    for (std::size_t k = 0; k < operands(); ++k) {
        const OperandInfo& operand = layout_.operand(k);
        if (operand.access != Access::buffered || !is_written(k)) continue;
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
        run_contiguous(at, box.size[inner], place_of(at));

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

/// Runs along contiguous memory, piece by piece. begin: the place of the first element in the order
/// of the parameter's memory, if elements are rounded at random. Advances the pointers.
void TilePass::run_contiguous(std::byte** at, std::size_t count, std::uint64_t begin) const {
    if (pass_.row_states.exist() && pass_.updates()) return run_by_row(at, count, begin);
    const bool joins = pass_.rests && layout_.has_master();
    for (;;) {
        std::size_t piece = count;
        if (layout_.has_extras() || pass_.update.is_bounded || pass_.norms != nullptr || joins) {
            piece = std::min(piece, elements_per_piece / layout_.components());
        }
        if (layout_.rounds_at_random() && !layout_.has_blocks()) {
            const std::uint64_t left_in_stream = stream_size - (pass_.first + begin) % stream_size;
            piece = std::min(piece, static_cast<std::size_t>(left_in_stream));
        }
        run_piece(at, piece, begin);
        count -= piece;
        if (count == 0) return;
        begin += piece;
        for (std::size_t k = 0; k < operands(); ++k) at[k] += layout_.operand(k).bytes(piece);
    }
}

/// The same for whole rows, by a row-wise rule.
[[gnu::noinline]] void TilePass::run_by_row(std::byte** at, std::size_t count,
                                            std::uint64_t begin) const {
    RowwiseUpdate update(layout_, pass_);
    const TilePass of_row(layout_, update.pass());
    const std::size_t row = pass_.row_states.row;
    for (std::size_t done = 0; done < count; done += row) {
        update.begin_row(at, begin + done);
        std::byte* moving[max_arrays];
        std::copy_n(at, operands(), moving);
        of_row.run_contiguous(moving, row, begin + done);
        for (std::size_t k = 0; k < operands(); ++k) at[k] += layout_.operand(k).bytes(row);
    }
}

void TilePass::run_piece(std::byte* const* at, std::size_t count, std::uint64_t begin) const {
    Norms* const norms = pass_.norms;
    if (norms != nullptr) load_parameter(at, count, norms->before);
    if (pass_.updates()) update(at, count, begin);
    if (pass_.clear_gradients) clear_gradient(at, count);
    if (norms == nullptr) return;
    const std::size_t values = count * layout_.components();
    norms->parameter.add(norms->before, values);
    if (!pass_.updates() || pass_.rests) return;
    load_parameter(at, count, norms->after);
    for (std::size_t i = 0; i < values; ++i) norms->after[i] -= norms->before[i];
    norms->update.add(norms->after, values);
}

/// Calls use(values) with the values of a parameter that has a master. Not inline: other steps need
/// no such space on the stack.
template <class Use>
[[gnu::noinline]] void TilePass::with_joined(std::byte* const* at, std::size_t count,
                                             const Use& use) const {
    float values[elements_per_piece];
    const std::size_t master = layout_.master();
    const auto kind = static_cast<std::size_t>(layout_.operand(master).master);
    pass_.level.join[kind](at[pass_.parameter()], at[master], values, count);
    use(reinterpret_cast<std::byte*>(values));
}

void TilePass::load_parameter(std::byte* const* at, std::size_t count, double* to) const {
    const auto load = [&](numbers::DType dtype, const std::byte* from) {
        constexpr auto to_double = static_cast<int>(numbers::DType::float64);
        pass_.level.format(dtype).load[to_double](from, to, count * layout_.components());
    };
    if (layout_.has_master()) {
        return with_joined(
            at, count, [&load](const std::byte* values) { load(numbers::DType::float32, values); });
    }
    load(layout_.operand(pass_.parameter()).dtype, at[pass_.parameter()]);
}

/// Runs the kernel, and writes the average and the copy.
void TilePass::update(std::byte* const* at, std::size_t count, std::uint64_t begin) const {
    if (pass_.rests) return update_average(at[rules::parameter_operand], at, count);
    sweep::Stream streams[rules::max_states + 1];
    for (int k = 0; layout_.rounds_at_random() && k <= rules::max_states; ++k) {
        streams[k] = {pass_.streams[k], pass_.first + begin};
    }
    const std::size_t components = layout_.components();
    const std::size_t updated = pass_.update.formats.moduli ? count : count * components;
    pass_.level.run(pass_.update, at, updated, streams);
    if (!layout_.has_extras()) return;
    for (std::size_t k = rules::first_state_operand; k < operands(); ++k) {
        const OperandInfo& operand = layout_.operand(k);
        if (operand.role == Role::average && pass_.average != nullptr) {
            update_average(at[k], at, count);
        }
        if (operand.role == Role::copy) {
            const sweep::Format& loops = pass_.level.format(operand.dtype);
            const bool is_streamed = pass_.update.prefetches && operand.access != Access::buffered;
            (is_streamed ? loops.stream : loops.store)(at[rules::parameter_operand], at[k], count);
        }
    }
}

void TilePass::update_average(std::byte* average, std::byte* const* at, std::size_t count) const {
    const auto update = [&](std::byte* values) {
        std::byte* const averaged[] = {average, values};
        pass_.level.run(*pass_.average, averaged, count * layout_.components(), nullptr);
    };
    if (layout_.has_master()) return with_joined(at, count, update);
    update(at[pass_.parameter()]);
}

void TilePass::clear_gradient(std::byte* const* at, std::size_t count) const {
    constexpr std::size_t gradient = rules::gradient_operand;
    std::memset(at[gradient], 0, count * layout_.operand(gradient).item_size);
}

/// The place of an element of a box in the order of the parameter's memory, if states are rounded
/// at random.
std::uint64_t TilePass::place_of(std::byte* const* at) const {
    if (layout_.rounded_state() == nullptr) return 0;
    constexpr std::size_t state = rules::first_state_operand;
    const auto bytes = static_cast<std::size_t>(at[state] - layout_.rounded_state());
    return bytes / layout_.operand(state).item_size;
}

}  // namespace

void run_pass(const Layout& layout, std::size_t first, std::size_t last, std::byte* const* data,
              const Pass& pass, Scratch& scratch) noexcept {
    if (first == last) return;
    const TilePass all(layout, pass);
    if (layout.is_flat()) {
        const std::size_t run = layout.run();
        return all.run_flat(first * run, std::min(last * run, layout.elements()), data);
    }
    for (std::size_t tile = first; tile < last; ++tile) {
        if (layout.has_runs()) {
            all.run_run(tile, data, scratch);
        } else {
            all.run_box(tile, data, scratch);
        }
    }
}

void run_elements(const Layout& layout, std::size_t first, std::size_t last, std::byte* const* data,
                  const Pass& pass) noexcept {
    if (first < last) TilePass(layout, pass).run_flat(first, last, data);
}

}  // namespace schuss::engine
