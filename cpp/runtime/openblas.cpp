#include "runtime/openblas.hpp"

#if defined(__linux__)

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <cstddef>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>

#include "runtime/fork.hpp"
#include "runtime/thread_pool.hpp"

namespace schuss::runtime {
namespace {

using namespace std::string_view_literals;

// The interface of OpenBLAS since 0.3.28. A call of BLAS consists of jobs, which wait for each
// other. Job i is do_job(slot, data + i * size, job_data). A slot is a thread's index in OpenBLAS's
// tables (of buffers): no two threads may have the same slot at the same time.
using DoJob = void (*)(int slot, void* data, int job_data);
using Callback = void (*)(int sync, DoJob do_job, int jobs, std::size_t size, void* data,
                          int job_data);
struct Jobs {
    DoJob do_job;
    std::size_t count, size;
    std::byte* data;
    int job_data;
};

/// The spin time of workers while the pool serves a library: no other threads want the cores, and a
/// program makes some small steps between two products.
constexpr std::chrono::microseconds serving_spin_time{1000};

class Library {
  public:
    Library(std::string path, void* handle) : path_(std::move(path)), handle_(handle) {
        find("get_config", config_);
        find("get_parallel", parallel_);
        find("get_num_threads", threads_);
        find("set_num_threads", set_threads_);
        find("set_threads_callback_function", set_callback_);
        own_threads_ = reinterpret_cast<OwnThreads>(symbol("exec_blas"));
        started_ = static_cast<const volatile int*>(symbol("blas_num_threads"));
        callback_now_ = static_cast<Callback*>(symbol("openblas_threads_callback_"));
        if (config_ == nullptr) return;
        const std::string_view config = config_();
        constexpr auto key = "MAX_THREADS="sv;
        if (const auto at = config.find(key); at != config.npos) {
            const auto value = config.substr(at + key.size());
            std::from_chars(value.data(), value.data() + value.size(), slots_);
        }
    }

    const std::string& path() const { return path_; }
    bool is_openblas() const { return parallel_ != nullptr && config_ != nullptr; }
    bool served() const { return served_; }

    std::string version() const {
        const std::string config = config_();
        return config.substr(0, config.find(' ', "OpenBLAS "sv.size()));
    }

    std::string refusal() const {
        constexpr int own_threads = 1;  // 0 is a build without threads, 2 one with OpenMP
        if (parallel_() != own_threads) return "does not use its own threads";
        if (set_callback_ == nullptr)
            return "cannot run its jobs on the threads of another library (OpenBLAS 0.3.28 and "
                   "later can)";
        if (threads_ == nullptr || set_threads_ == nullptr || own_threads_ == nullptr ||
            started_ == nullptr || slots_ == 0) {
            return "does not export its number of threads";
        }
        if (callback_now_ != nullptr && *callback_now_ != nullptr && !served_) {
            return "already runs its jobs on the threads of another library";
        }
        if (static_cast<std::size_t>(threads_()) > free_slots()) {
            return "has " + std::to_string(*started_) + " threads, and free slots for " +
                   std::to_string(free_slots()) +
                   " others (OPENBLAS_NUM_THREADS=" + std::to_string(slots_ / 2) +
                   " leaves enough)";
        }
        return "";
    }

    void serve(bool serve, Callback callback) {
        const std::lock_guard lock(switch_);
        served_ = serve;
        callback_ = callback;
        if (with_own_threads_ == 0) set_callback_(served_ ? callback_ : nullptr);
    }

    /// Runs the jobs of one call of BLAS.
    void run(const Jobs& jobs) noexcept {
        const auto run_job = [](void* context, std::size_t job, std::size_t slot) noexcept {
            const auto& [library, all] = *static_cast<const Call*>(context);
            // From the last slot down: OpenBLAS's own threads have the first ones.
            all.do_job(static_cast<int>(library.slots_ - 1 - slot), all.data + job * all.size,
                       all.job_data);
        };
        Call call{*this, jobs};
        const bool done =
            jobs.count <= free_slots() && run_concurrently({run_job, &call, jobs.count, true});
        if (!done) run_with_own_threads(jobs);
    }

    /// OpenBLAS ends its threads before a fork. If the next call of BLAS restarted them, OpenBLAS
    /// would free buffers that concurrent calls still use.
    void restart() {
        if (served_) set_threads_(threads_());
    }

    /// Whether the library was never served before.
    bool is_new() { return std::exchange(new_, false); }

    /// Resets the state in the child of a fork, where no thread is in a call.
    void reset_in_child() {
        std::construct_at(&switch_);  // another thread may have locked it
        with_own_threads_ = 0;
        if (served_) set_callback_(callback_);
        restart();
    }

  private:
    using OwnThreads = int (*)(std::ptrdiff_t jobs, void* data);
    struct Call {
        const Library& library;
        const Jobs& jobs;
    };

    /// A symbol that the library itself defines, not one of a library that it uses; or nullptr.
    void* symbol(const std::string& name) const {
        void* const address = ::dlsym(handle_, name.c_str());
        Dl_info info;
        const bool own =
            address != nullptr && ::dladdr(address, &info) != 0 && info.dli_fname == path_;
        return own ? address : nullptr;
    }

    /// Finds the function openblas_<name>, under any of the names that builds give it.
    template <class Function>
    void find(const std::string& name, Function*& function) const {
        for (const char* prefix : {"", "scipy_"}) {
            for (const char* suffix : {"", "64_", "_64"}) {
                void* const address = symbol(prefix + ("openblas_" + name) + suffix);
                if (address == nullptr) continue;
                function = reinterpret_cast<Function*>(address);
                return;
            }
        }
    }

    std::size_t free_slots() const {
        const auto own = static_cast<std::size_t>(std::max(*started_ - 1, 0));
        return slots_ - std::min(slots_, own);
    }

    /// Runs the jobs as OpenBLAS does without us. Calls that begin meanwhile do not use the pool
    /// either.
    void run_with_own_threads(const Jobs& jobs) noexcept {
        const auto change = [this](int by) {
            const std::lock_guard lock(switch_);
            with_own_threads_ += by;
            set_callback_(with_own_threads_ == 0 && served_ ? callback_ : nullptr);
        };
        change(1);
        own_threads_(static_cast<std::ptrdiff_t>(jobs.count), jobs.data);
        change(-1);
    }

    std::string path_;
    void* handle_;
    char* (*config_)() = nullptr;
    int (*parallel_)() = nullptr;
    int (*threads_)() = nullptr;
    void (*set_threads_)(int) = nullptr;
    void (*set_callback_)(Callback) = nullptr;
    OwnThreads own_threads_ = nullptr;
    const volatile int* started_ = nullptr;  // threads, including the caller's
    const Callback* callback_now_ = nullptr;
    std::size_t slots_ = 0;

    std::mutex switch_;
    bool new_ = true;
    bool served_ = false;
    int with_own_threads_ = 0;  // calls
    Callback callback_ = nullptr;
};

/// More than a process loads.
constexpr std::size_t max_libraries = 8;
/// Never destroyed: a thread may be in BLAS when the process ends.
auto& libraries = *new std::array<std::unique_ptr<Library>, max_libraries>;

/// Locked while libraries are looked for, or begin or cease to be served: always under a guard
/// against forks, so that no child finds it locked.
std::mutex changes;

/// OpenBLAS does not tell which library calls, so each library has its own function.
template <std::size_t library>
void serve_library(int, DoJob do_job, int jobs, std::size_t size, void* data, int job_data) {
    if (jobs <= 0) return;
    libraries[library]->run(
        {do_job, static_cast<std::size_t>(jobs), size, static_cast<std::byte*>(data), job_data});
}

template <std::size_t... i>
constexpr std::array<Callback, sizeof...(i)> callbacks_of(std::index_sequence<i...>) {
    return {&serve_library<i>...};
}
constexpr auto callbacks = callbacks_of(std::make_index_sequence<max_libraries>());

/// The index of a library; max_libraries if it is unknown.
std::size_t library_index(const std::string& path) {
    const auto is = [&path](const auto& each) { return each != nullptr && each->path() == path; };
    const auto found = std::find_if(libraries.begin(), libraries.end(), is);
    return static_cast<std::size_t>(found - libraries.begin());
}

void for_all(void (Library::*action)()) {
    for (const auto& library : libraries) {
        if (library != nullptr) (library.get()->*action)();
    }
}

/// Appends the path of a loaded object to a list.
int append_path(dl_phdr_info* object, std::size_t, void* paths) {
    static_cast<std::vector<std::string>*>(paths)->emplace_back(object->dlpi_name);
    return 0;
}

void look_for_new_libraries() {
    std::vector<std::string> paths;
    ::dl_iterate_phdr(&append_path, &paths);
    for (const std::string& path : paths) {
        const bool may_be = path.find("blas", path.rfind('/') + 1) != path.npos;
        const auto free = std::find(libraries.begin(), libraries.end(), nullptr);
        if (!may_be || library_index(path) != max_libraries || free == libraries.end()) continue;
        void* const handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
        if (handle == nullptr) continue;
        auto found = std::make_unique<Library>(path, handle);
        if (found->is_openblas()) {
            *free = std::move(found);  // a library that may be served must stay loaded
        } else {
            ::dlclose(handle);
        }
    }
}

}  // namespace

std::vector<OpenBlas> find_openblas() {
    const ForkGuard no_fork;
    const std::lock_guard lock(changes);
    look_for_new_libraries();
    std::vector<OpenBlas> found;
    for (const auto& library : libraries) {
        if (library == nullptr) continue;
        found.push_back(
            {library->path(), library->version(), library->refusal(), library->served()});
    }
    return found;
}

bool serve_openblas(const std::string& path, bool serve) {
    const ForkGuard no_fork;
    const std::lock_guard lock(changes);
    static std::once_flag registered;
    std::call_once(registered, [] {
        at_fork([] { for_all(&Library::restart); }, [] { for_all(&Library::reset_in_child); });
    });
    const std::size_t index = library_index(path);
    if (index == max_libraries) return false;
    Library& library = *libraries[index];
    if (serve && !library.refusal().empty()) return false;
    if (serve && library.is_new()) reregister_atfork();
    library.serve(serve, callbacks[index]);
    const bool any = std::any_of(libraries.begin(), libraries.end(), [](const auto& each) {
        return each != nullptr && each->served();
    });
    set_spin_time(any ? serving_spin_time : default_spin_time);
    return true;
}

}  // namespace schuss::runtime

#else

namespace schuss::runtime {

std::vector<OpenBlas> find_openblas() {
    return {};
}

bool serve_openblas(const std::string&, bool) {
    return false;
}

}  // namespace schuss::runtime

#endif
