// One crew for BLAS as well: OpenBLAS lets a program run its jobs, and then has no threads of its
// own that fight with ours for the cores.
#pragma once

#include <string>
#include <vector>

namespace schuss::runtime {

/// An OpenBLAS that this process has loaded.
struct OpenBlas {
    std::string path;
    std::string version;
    std::string refusal;  // why the crew cannot serve it; empty if it can
    bool served;
};

/// Looks for OpenBLAS among the loaded libraries.
std::vector<OpenBlas> find_openblas();

/// Lets the crew serve the library, or no longer. False if it cannot.
bool serve_openblas(const std::string& path, bool serve);

}  // namespace schuss::runtime
