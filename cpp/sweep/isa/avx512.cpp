#define SCHUSS_LEVEL avx512
#include "sweep/level-inl.hpp"
