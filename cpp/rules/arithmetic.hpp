// Functions that rules need besides operators, for numbers and for the compiler's vectors, which
// have overloads of square_root and magnitude of their own. They call the C library directly:
// std::sqrt has inline overloads, which an unoptimised build would export from a file compiled for
// AVX.
#pragma once

struct Arithmetic {
    static float root(float x) { return ::sqrtf(x); }
    static double root(double x) { return ::sqrt(x); }
    static float absolute(float x) { return ::fabsf(x); }
    static double absolute(double x) { return ::fabs(x); }
};

/// A number as T: in every element of a vector. The subtraction changes no number, not even -0.
template <typename T, typename Number>
T filled(Number x) {
    return x - T{};
}

template <typename T>
T square_root(T x) {
    return Arithmetic::root(x);
}

/// The square of the magnitude.
template <typename T>
T square(T x) {
    return x * x;
}

template <typename T>
T magnitude(T x) {
    return Arithmetic::absolute(x);
}

/// 1, -1 or 0. NaN stays NaN.
template <typename T>
T sign(T x) {
    const T one = filled<T>(1.0f);
    return x > 0 ? one : x < 0 ? -one : x;
}

/// The larger number; NaN if one is NaN.
template <typename T>
T maximum(T x, T y) {
    return x >= y ? x : x != x ? x : y;
}
