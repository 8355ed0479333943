#define SCHUSS_LEVEL avx2
#include "sweep/level-inl.hpp"
