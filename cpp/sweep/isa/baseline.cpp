#define SCHUSS_LEVEL baseline
#include "sweep/level-inl.hpp"
