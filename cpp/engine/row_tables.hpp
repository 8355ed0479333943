// The parameters of a step that are updated by rows.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "engine/operand.hpp"
#include "engine/pace.hpp"
#include "engine/plan.hpp"
#include "engine/row_gradient.hpp"
#include "engine/row_table.hpp"
#include "engine/scratch.hpp"

namespace schuss::engine {

class RowTables {
  public:
    /// Whether rows without a gradient rest; otherwise they make the step later. Set it before
    /// there are tables.
    bool is_lazy() const { return is_lazy_; }
    void set_lazy(bool is_lazy) { is_lazy_ = is_lazy; }

    /// Lays out the arrays of a parameter, as those of an item, but the gradient's dtype is the
    /// compute dtype, its strides are those of an array in C order, and its data is not used.
    /// Returns false, and has no table, if the arrays cannot be updated by rows. No row may be
    /// pending. states: those of a row-wise rule.
    bool lay_out(std::size_t parameter, const std::vector<std::size_t>& shape,
                 const std::vector<Operand>& operands, const RowStates& states = {});
    bool has(std::size_t parameter) const { return find(parameter) != nullptr; }
    bool is_empty() const { return tables_.empty(); }

    /// Drops all tables, for instance before arrays are replaced. No row may be pending.
    void clear() noexcept;

    /// Sets the gradient of a parameter in the next step, in which its item must rest without
    /// arrays. Keep its order and its values until the step has been made.
    void set_gradient(std::size_t parameter, const RowGradient& gradient);

    /// Forgets these gradients.
    void clear_gradients() noexcept;

    /// These gradients: nullptr for parameters without one, empty if there are none.
    const std::vector<const RowGradient*>& gradients() const { return gradients_; }

    /// Whether a row of the parameter, or of any, may have missed a step. The item of such a
    /// parameter must rest without arrays too, even if there is an average.
    bool are_pending(std::size_t parameter) const;
    bool are_pending() const;

    /// Call this before the functions below. It may throw; they cannot.
    void prepare();

    /// Brings all rows of all parameters up to date. plan: of the parameters.
    void flush(const Plan& plan, std::uint64_t seed) noexcept;

    /// Brings some rows of a parameter up to date.
    void catch_up(const Plan& plan, std::uint64_t seed, std::size_t parameter,
                  const RowOrder& rows) noexcept;

    /// Brings the rows of those parameters up to date that will not make the step by rows, or whose
    /// history has no room for it.
    void flush_before(const Plan& plan, const Run& step) noexcept;

    /// Makes the step with the gradients.
    void run(const Plan& plan, const Run& step) noexcept;

  private:
    struct Table {
        std::unique_ptr<RowTable> rows;
        RowGradient gradient;
    };
    /// Some rows of a run over a table.
    struct Share {
        std::size_t job, begin, end;
    };
    struct Job {
        RowTable* table;
        RowRun run;
        std::size_t count;  // of rows
    };

    RowTable* find(std::size_t parameter) const;
    RowHistory::Step step_of(const Plan& plan, const Run& step, std::size_t parameter) const;
    void run_jobs() noexcept;
    template <class Choose>
    void flush_if(const Plan& plan, std::uint64_t seed, const Choose& choose) noexcept;

    const RowGradient* gradient(std::size_t parameter) const {
        return gradients_.empty() ? nullptr : gradients_[parameter];
    }

    std::vector<Table> tables_;                  // of each parameter up to the last that has one
    std::vector<const RowGradient*> gradients_;  // one for each table, or empty
    bool is_lazy_ = false;
    std::vector<Job> jobs_;
    std::vector<Share> shares_;
    std::size_t threads_ = 1;       // of a run, at most
    std::vector<Scratch> scratch_;  // of each thread
    Pace pace_;
};

}  // namespace schuss::engine
