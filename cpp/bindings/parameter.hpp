// Parameters with the arrays that belong to them, and their checks.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings/array_view.hpp"
#include "bindings/arrays.hpp"
#include "bindings/overlap.hpp"
#include "bindings/tree.hpp"
#include "engine/plan.hpp"
#include "engine/row_tables.hpp"

namespace schuss::bindings {

/// Since when an array may not change, and what is to be done if it did, in messages.
struct Bound {
    const char* since = "the optimizer was made";
    const char* remedy = "make a new optimizer";
};

class Parameter {
  public:
    /// An array that belongs to a parameter: a state, the master, the average or the copy.
    struct AuxArray {
        engine::Role role;
        ArrayView array;
        std::string name;          // in messages
        bool nonnegative = false;  // whether it is a state whose elements are never less than 0
        bool by_row = false;       // whether it is a state that has a number for each row
    };

    /// TypeError or ValueError unless the array can be a parameter.
    Parameter(ArrayView array, const Name& name, const Bound& bound = {});

    const std::string& name() const { return name_; }
    const ArrayView& array() const { return array_; }
    const Bound& bound() const { return bound_; }
    const std::vector<AuxArray>& aux_arrays() const { return aux_arrays_; }
    bool is_complex() const { return type_.is_complex(); }
    numbers::DType compute_dtype() const { return numbers::compute_dtype(type_.dtype); }

    /// The average and the low-precision copy; nullptr if there is none.
    const ArrayView* average() const { return find(engine::Role::average); }
    const ArrayView* copy() const { return find(engine::Role::copy); }

    /// Rounds the parameter at random, if it is in bfloat16 and has no master.
    void round_at_random() { rounds_at_random_ = true; }

    /// A new array of the values in the compute dtype: of a parameter with a master, all their
    /// bits.
    py::array values() const;

    /// Gives the parameter its arrays in the order of the kernel: states, master, average, copy.
    /// TypeError or ValueError unless they go with the parameter.
    void set_aux_arrays(std::vector<AuxArray> arrays, const std::string& call,
                        DtypeRule of_states = DtypeRule::stochastic);

    /// ValueError for a complex parameter with bounds or a limit of its gradient, as complex
    /// numbers have no order; and for bounds that exclude all numbers of the parameter's dtype.
    void check_limits(const engine::Formula& formula, double clip_value,
                      const std::string& call) const;

    /// Appends the arrays that an update writes.
    void append_written(std::vector<NamedArray>& out) const;

    /// ValueError if the copy, an array of the user's, has become read-only or was resized. Runs no
    /// Python code unless it raises.
    void check_copy(const std::string& call) const;

    /// ValueError if the parameter or its copy is not a NumPy array, such as a tensor, and was
    /// given other memory. May run user code.
    void check_shows_its_memory(const std::string& call) const;

    /// ValueError for a parameter that changed (ArrayCache::parameter_is_unchanged).
    [[noreturn]] void refuse_change(const std::string& call) const;

    /// Lays the arrays out for a gradient. TypeError or ValueError if its dtype or shape does not
    /// go with the parameter.
    engine::Item item(const ArrayView& gradient, const Name& name, std::size_t group) const;

    /// Lays the arrays out for steps by rows, as the parameter with this index. False if they
    /// cannot be stepped so.
    bool lay_out(engine::RowTables& tables, std::size_t index) const;

    /// Lays the arrays out for a step in which the parameter has no gradient. is_read: whether
    /// the step reads the parameter even if it has no average.
    engine::Item resting_item(std::size_t group, bool is_read) const;

    /// The same for a step that leaves its arrays alone, since it is stepped apart.
    engine::Item apart_item(std::size_t group) const {
        return engine::Item::resting(group, array_.shape(), type_.components, {});
    }

    /// For Python's cycle collector.
    int traverse(visitproc visit, void* arg) const;

  private:
    const ArrayView* find(engine::Role role) const;
    std::vector<engine::Operand> operands(const engine::Operand& gradient) const;
    engine::RowStates row_states() const;
    const ArrayView* master() const { return find(engine::Role::master); }
    ElementType check_aux_array(const AuxArray& aux, const Name& name, DtypeRule of_states) const;

    std::string name_;  // in messages
    Bound bound_;
    ArrayView array_;
    ElementType type_;
    bool rounds_at_random_ = false;
    std::vector<AuxArray> aux_arrays_;
    std::vector<ElementType> aux_types_;
    std::vector<std::ptrdiff_t> row_strides_;  // of states by row, for the axes of the parameter
};

/// Arrays that belong to parameters, by role: each a list with one array for each parameter. The
/// masters are None for parameters that have none.
struct AuxArrays {
    using List = std::vector<py::object>;

    std::vector<std::pair<std::string, List>> states;  // by name
    std::optional<List> averages, copies, masters;

    /// The arrays of a state. KeyError if there is none of that name.
    const List& state(std::string_view name) const;

    /// For Python's cycle collector.
    int traverse(visitproc visit, void* arg) const;
    AuxArrays release() noexcept { return std::exchange(*this, {}); }
};

/// The parameters of an optimizer.
class Parameters {
  public:
    Parameters() = default;

    /// leaves: in the form of the tree. round_at_random: whether those in bfloat16 are rounded so.
    /// TypeError or ValueError unless they can be parameters.
    Parameters(const std::vector<py::object>& leaves, const Tree& tree, const std::string& call,
               const std::string& argument, bool round_at_random = false);

    std::size_t size() const { return parameters_.size(); }
    const Parameter& operator[](std::size_t i) const { return parameters_[i]; }
    auto begin() const { return parameters_.begin(); }
    auto end() const { return parameters_.end(); }

    bool have_averages() const { return have_averages_; }
    bool have_copies() const { return have_copies_; }

    /// Whether a parameter is a view of memory that another array owns.
    bool some_are_views() const { return some_are_views_; }

    /// Whether these averages belong to the parameters already.
    bool have_these_averages(const std::optional<AuxArrays::List>& averages) const;

    /// The same parameters with other arrays. TypeError or ValueError unless they go together.
    /// formula: whose states they have.
    Parameters with_aux_arrays(const AuxArrays& arrays, const engine::Formula& formula,
                               const Tree& tree, const std::string& call) const;

    /// The same parameters without the arrays that belong to them.
    Parameters alone(const std::string& call) const;

    void replace(std::size_t i, Parameter parameter);

    /// The arrays that a step writes, appended.
    void append_written(std::vector<NamedArray>& out) const;

    /// ValueError if an object that is not a NumPy array was given other memory. May run user code.
    void check_shown_memory(const std::string& call) const;

    /// For Python's cycle collector.
    int traverse(visitproc visit, void* arg) const;

  private:
    void count_kinds();

    std::vector<Parameter> parameters_;
    bool have_averages_ = false, have_copies_ = false;
    bool all_are_arrays_ = true;  // NumPy's, parameters and copies
    bool some_are_views_ = false;
};

}  // namespace schuss::bindings
