// One thread pool for BLAS as well: OpenBLAS lets a program run its jobs, so that its own threads
// do not compete with ours for the cores.
#pragma once

#include <string>
#include <vector>

namespace schuss::runtime {

/// An OpenBLAS that this process has loaded.
struct OpenBlas {
    std::string path;
    std::string version;
    std::string refusal;  // why the pool cannot serve it; empty if it can
    bool served;
};

/// Finds OpenBLAS among the loaded libraries.
std::vector<OpenBlas> find_openblas();

/// Starts or stops running the jobs of a library on the pool. Returns false if that is impossible.
bool serve_openblas(const std::string& path, bool serve);

}  // namespace schuss::runtime
