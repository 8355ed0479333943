// A complex number with the operations that rules need. Real coefficients multiply both components.
#pragma once

template <typename T>
struct Complex {
    T real, imag;
};

template <typename T>
Complex<T> operator+(Complex<T> a, Complex<T> b) {
    return {a.real + b.real, a.imag + b.imag};
}

template <typename T>
Complex<T> operator-(Complex<T> a, Complex<T> b) {
    return {a.real - b.real, a.imag - b.imag};
}

template <typename T>
Complex<T> operator*(T factor, Complex<T> z) {
    return {factor * z.real, factor * z.imag};
}

template <typename T>
Complex<T> operator*(Complex<T> z, T factor) {
    return factor * z;
}

template <typename T>
Complex<T> operator/(Complex<T> z, T divisor) {
    return {z.real / divisor, z.imag / divisor};
}

template <typename T>
T square(Complex<T> z) {
    return z.real * z.real + z.imag * z.imag;
}

template <typename T>
T magnitude(Complex<T> z) {
    return square_root(square(z));
}
