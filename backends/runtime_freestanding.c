/* What a compiler may call where no C library is: each function only where NEED_<name> is defined. Weak, so that the
   program's own may take its place. Exact: the same bits as IEEE 754's operations. */
#include <stddef.h>
#include <stdint.h>

#ifndef OWN
#define OWN __attribute__((weak))
#endif

typedef union {
    float number;
    uint32_t bits;
} word;

#define SIGN 0x80000000u
#define ONE 0x3f800000u

#if defined(NEED_nearbyintf) || defined(NEED_rintf) || defined(NEED_roundevenf)
/* To the nearest whole number, ties to the even one. */
static float nearest_even(float x)
{
    word w = {x};
    const uint32_t exponent = (w.bits >> 23) & 255u;
    if (exponent >= 150u) return x; /* whole, infinite, or not a number */
    if (exponent < 127u) {          /* below 1: 0, or 1 where it is more than 0.5 */
        w.bits = (w.bits & SIGN) | (exponent == 126u && (w.bits & 0x7fffffu) != 0 ? ONE : 0u);
    } else {
        const uint32_t shift = 150u - exponent; /* bits of fraction */
        w.bits += (1u << (shift - 1u)) - 1u + ((w.bits >> shift) & 1u);
        w.bits &= ~((1u << shift) - 1u);
    }
    return w.number;
}
#endif

#ifdef NEED_nearbyintf
OWN float nearbyintf(float x);
OWN float nearbyintf(float x) { return nearest_even(x); }
#endif

#ifdef NEED_rintf
OWN float rintf(float x);
OWN float rintf(float x) { return nearest_even(x); }
#endif

#ifdef NEED_roundevenf
OWN float roundevenf(float x);
OWN float roundevenf(float x) { return nearest_even(x); }
#endif

#if defined(NEED_truncf) || defined(NEED_floorf) || defined(NEED_ceilf) || defined(NEED_roundf)
/* Towards 0. */
static float towards_zero(float x)
{
    word w = {x};
    const uint32_t exponent = (w.bits >> 23) & 255u;
    if (exponent >= 150u) return x;
    w.bits &= exponent < 127u ? SIGN : ~((1u << (150u - exponent)) - 1u);
    return w.number;
}
#endif

#ifdef NEED_truncf
OWN float truncf(float x);
OWN float truncf(float x) { return towards_zero(x); }
#endif

#ifdef NEED_floorf
OWN float floorf(float x);
OWN float floorf(float x)
{
    const float whole = towards_zero(x);
    return whole > x ? whole - 1.0f : whole;
}
#endif

#ifdef NEED_ceilf
OWN float ceilf(float x);
OWN float ceilf(float x)
{
    const word whole = {towards_zero(x)};
    const word up = {whole.number + 1.0f};
    word result = whole.number < x ? up : whole;
    const word given = {x};
    result.bits |= given.bits & SIGN; /* -0.5 becomes -0 */
    return result.number;
}
#endif

#ifdef NEED_roundf
OWN float roundf(float x);
/* Ties away from 0. */
OWN float roundf(float x)
{
    word w = {towards_zero(x)};
    const float rest = x - w.number; /* exact */
    if (rest >= 0.5f) w.number += 1.0f;
    if (rest <= -0.5f) w.number -= 1.0f;
    return w.number;
}
#endif

#ifdef NEED_fmaxf
OWN float fmaxf(float x, float y);
OWN float fmaxf(float x, float y) { return x > y || y != y ? x : y; }
#endif

#ifdef NEED_fminf
OWN float fminf(float x, float y);
OWN float fminf(float x, float y) { return x < y || y != y ? x : y; }
#endif

#ifdef NEED_sqrtf
OWN float sqrtf(float x);
/* One bit of the root after the other, then rounded to the nearest (the remainder is never a tie). */
OWN float sqrtf(float x)
{
    word w = {x};
    int32_t exponent = (int32_t)(w.bits >> 23);
    uint32_t mantissa = w.bits & 0x7fffffu, root = 0, rest = 0;
    if (x == 0.0f || x != x || w.bits == 0x7f800000u) return x;
    if (w.bits & SIGN) {
        w.bits = 0x7fc00000u;
        return w.number;
    }
    if (exponent == 0) { /* denormal */
        for (exponent = 1; (mantissa & 0x800000u) == 0; --exponent) mantissa <<= 1;
    } else {
        mantissa |= 0x800000u;
    }
    exponent -= 127;
    if (exponent & 1) {
        mantissa <<= 1;
        --exponent;
    }
    /* root of mantissa * 2^25: 25 bits, the last one for rounding */
    for (int32_t i = 0; i < 25; ++i) {
        uint32_t trial;
        rest = (rest << 2) | ((mantissa >> 23) & 3u);
        mantissa = (mantissa & 0x7fffffu) << 2;
        trial = (root << 2) | 1u;
        root <<= 1;
        if (rest >= trial) {
            rest -= trial;
            root |= 1u;
        }
    }
    w.bits = (uint32_t)((exponent / 2 + 126) << 23) + ((root + 1u) >> 1);
    return w.number;
}
#endif

#ifdef NEED_graphc_rounded_product
OWN int32_t graphc_rounded_product(int32_t sum, int32_t scale);
/* rint(float32(sum) * scale) without a floating-point unit; `scale` is the bits of a positive float32. At least 2^22 in
   magnitude where that is more. All that is rounded is the magnitude: ties to even do not see the sign.

   sum to 24 bits, times 24 bits of scale: a product of 48 bits, high * 2^24 + low, in units of 2^-(shift + 24). To round
   it to 24 bits first can only make a tie of what is as near to one as half of the last of those bits. */
OWN int32_t graphc_rounded_product(int32_t sum, int32_t scale)
{
    const uint32_t bits = (uint32_t)scale, mantissa = (bits & 0x7fffffu) | 0x800000u;
    int32_t shift = 126 - (int32_t)((bits >> 23) & 255u);
    uint32_t magnitude = sum < 0 ? 0u - (uint32_t)sum : (uint32_t)sum;
    uint32_t low, middle, high, half, whole, fraction, rounded;
    if (magnitude >> 24) {
        uint32_t dropped = 1, rest;
        while (dropped < 8u && magnitude >> (24u + dropped)) ++dropped;
        rest = magnitude & ((1u << dropped) - 1u);
        magnitude >>= dropped;
        half = 1u << (dropped - 1u);
        if (rest > half || (rest == half && (magnitude & 1u))) ++magnitude;
        shift -= (int32_t)dropped;
    }
    low = (magnitude & 0xfffu) * (mantissa & 0xfffu);
    middle = (magnitude >> 12) * (mantissa & 0xfffu) + (magnitude & 0xfffu) * (mantissa >> 12) + (low >> 12);
    high = (magnitude >> 12) * (mantissa >> 12) + (middle >> 12);
    low = ((middle << 12) | (low & 0xfffu)) & 0xffffffu;
    if (shift < 1) {
        const uint32_t left = (uint32_t)(1 - shift);
        if (magnitude == 0) return 0;
        if (left > 24u || high >> (30u - left)) return sum < 0 ? -0x40000000 : 0x40000000;
        high = (high << left) | (low >> (24u - left));
        low = (low << left) & 0xffffffu;
        shift = 1;
    }
    if (shift > 26) return 0;
    half = 1u << (shift - 1);
    whole = high >> shift;
    fraction = high & (2u * half - 1u);
    rounded = (high + half) >> shift;
    if (fraction - half + 1u <= 1u) { /* less than 1 from a tie, in units of high */
        const uint32_t distance = fraction == half ? low : 0x1000000u - low, below = distance - 1u;
        /* at most the highest bit of high: half of the last of 24 bits */
        if (distance == 0 || (below < high && below < (below ^ high))) rounded = whole + (whole & 1u);
    }
    return sum < 0 ? -(int32_t)rounded : (int32_t)rounded;
}
#endif

/* float32 where there is no unit for it, by the names that LLVM calls: a compiler knows its own library's. */
#ifdef NEED___addsf3
OWN float __addsf3(float x, float y);
OWN float __addsf3(float x, float y) { return x + y; }
#endif

#ifdef NEED___subsf3
OWN float __subsf3(float x, float y);
OWN float __subsf3(float x, float y) { return x - y; }
#endif

#ifdef NEED___mulsf3
OWN float __mulsf3(float x, float y);
OWN float __mulsf3(float x, float y) { return x * y; }
#endif

#ifdef NEED___divsf3
OWN float __divsf3(float x, float y);
OWN float __divsf3(float x, float y) { return x / y; }
#endif

#ifdef NEED___floatsisf
OWN float __floatsisf(int32_t x);
OWN float __floatsisf(int32_t x) { return (float)x; }
#endif

#ifdef NEED___floatunsisf
OWN float __floatunsisf(uint32_t x);
OWN float __floatunsisf(uint32_t x) { return (float)x; }
#endif

#ifdef NEED___fixsfsi
OWN int32_t __fixsfsi(float x);
OWN int32_t __fixsfsi(float x) { return (int32_t)x; }
#endif

#ifdef NEED___fixunssfsi
OWN uint32_t __fixunssfsi(float x);
OWN uint32_t __fixunssfsi(float x) { return (uint32_t)x; }
#endif

#ifdef NEED_memmove
OWN void *memmove(void *to, const void *from, size_t count);
OWN void *memmove(void *to, const void *from, size_t count)
{
    uint8_t *t = (uint8_t *)to;
    const uint8_t *f = (const uint8_t *)from;
    if ((uintptr_t)t < (uintptr_t)f) {
        for (size_t i = 0; i < count; ++i) ((volatile uint8_t *)t)[i] = f[i];
    } else {
        for (size_t i = count; i-- > 0;) ((volatile uint8_t *)t)[i] = f[i];
    }
    return to;
}
#endif
