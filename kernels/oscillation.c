// The oscillating neuron and its event gate on the CPU, forward and backward, in float32. Equations: oscillation.py.
//
// The compiler turns the short plain loops over tiles of features into SIMD code. It can, because they round by adding
// a magic number, clamp by conditional expressions and call no library. Long chains of dependent operations are cut
// into two loops, whose iterations a processor overlaps better. No -ffast-math: NaN and infinity must come through.
// Absolute errors: tanh 4e-7; sine and cosine 2e-7, whatever the phase (past FAR the C library computes them).
#include <math.h>
#include <stdint.h>
#include <string.h>

#define TILE 128          // features of a tile: its temporaries stay in the first-level cache
#define FAR 30000.0f      // subtracting a multiple of pi from a larger phase would lose digits
#define ROUND 12582912.0f // 1.5 * 2^23: adding it rounds a float to an integer, held by the low bits of the sum
#define SURROGATE_WIDTH 0.25f // of a threshold, as in oscillation.py
#define LEAST_WIDTH 1e-6f
#define INLINE static inline __attribute__((always_inline))
#define IN const float *restrict
#define OUT float *restrict
#define EACH for (int k = 0; k < n; k++)
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__FP_FAST_FMAF)
#define FMA(a, b, c) __builtin_fmaf(a, b, c)
#define LESS_PI(a, m) FMA(m, 8.74227766e-8f, FMA(m, -3.14159274f, a)) // a - m pi, with pi as a sum of two floats
#else // without the instruction, fmaf would be a slow function call for each element
#define FMA(a, b, c) ((a) * (b) + (c))
#define LESS_PI(a, m) (float)((a) - (m) * 3.141592653589793)
#endif

INLINE int32_t bits_of(float a) {
    int32_t i;
    memcpy(&i, &a, 4);
    return i;
}
INLINE float from_bits(int32_t i) {
    float a;
    memcpy(&a, &i, 4);
    return a;
}

// tanh(x) = x P(x^2) / Q(x^2), fitted to the least relative error (2e-8) on |x| <= 9, past which tanh rounds to 1.
INLINE float rational_tanh(float x) {
    x = x > 9 ? 9 : x;
    x = x < -9 ? -9 : x;
    float q = x * x;
    float p = FMA(q, FMA(q, FMA(q, FMA(q, 1.33545941e-8f, 2.06090282e-5f), 3.49558458e-3f), 0.133810225f), 1);
    float d = FMA(q, FMA(q, FMA(q, FMA(q, 7.77652915e-7f, 3.2856292e-4f), 2.58769684e-2f), 0.467143381f), 1);
    return x * p / d;
}
INLINE float sigmoid(float a) { return FMA(0.5f, rational_tanh(0.5f * a), 0.5f); }

// s = sin(w x + p), t = tanh(x) and, unless c is NULL, c = cos(w x + p); or, where s is NULL, y = s t + b alone.
// The phase w x + p is rounded as torch rounds it, then reduced to +-pi/2, where the polynomials were fitted (errors of
// the sine 5e-9, of the cosine 5e-8).
INLINE void oscillate(IN x, IN w, IN p, IN b, OUT y, OUT s, OUT c, OUT t, int n) {
    int32_t largest = 0;
    EACH {
        float a = w[k] * x[k] + p[k], turns = FMA(a, 0.318309886f, ROUND), r = LESS_PI(a, turns - ROUND), q = r * r;
        float ps = FMA(q, FMA(q, FMA(q, 2.5996688e-6f, -1.980644161e-4f), 8.333014903e-3f), -0.16666657f);
        float pc = FMA(q, FMA(q, FMA(q, 2.319041657e-5f, -1.385576248e-3f), 4.166396926e-2f), -0.4999993161f);
        int32_t flip = (int32_t)((uint32_t)bits_of(turns) << 31), size = bits_of(a) & 0x7fffffff;
        float sine = from_bits(flip ^ bits_of(FMA(r * q, ps, r))), th = rational_tanh(x[k]);
        largest = size > largest ? size : largest;
        if (c) c[k] = from_bits(flip ^ bits_of(FMA(q, pc, 1)));
        if (s) {
            s[k] = sine;
            t[k] = th;
        } else y[k] = FMA(sine, th, b[k]);
    }
    if (largest > bits_of(FAR)) EACH {
        float a = w[k] * x[k] + p[k];
        if (fabsf(a) <= FAR) continue;
        if (c) c[k] = (float)cos(a);
        if (s) s[k] = (float)sin(a);
        else y[k] = FMA((float)sin(a), rational_tanh(x[k]), b[k]);
    }
}

// From g, the gradient of s t + b: dx, and to the running sums dw, dp and db the gradients of w, p and b.
INLINE void oscillate_backward(IN x, IN g, IN w, IN s, IN c, IN t, OUT dx, OUT dw, OUT dp, OUT db, int n) {
    EACH {
        float d = g[k] * c[k] * t[k];
        dw[k] = FMA(d, x[k], dw[k]);
        dp[k] += d;
        db[k] += g[k];
        dx[k] = FMA(w[k], d, g[k] * s[k] * FMA(-t[k], t[k], 1));
    }
}

// u = s t + b, v = sigmoid(gain u + offset), e = sigmoid(5 (v - threshold)), which oscillation.py calls s, and z = u e.
INLINE void gate(IN s, IN t, IN b, IN gain, IN offset, float threshold, OUT u, OUT v, OUT e, OUT z, int n) {
    EACH {
        u[k] = FMA(s[k], t[k], b[k]);
        v[k] = sigmoid(FMA(gain[k], u[k], offset[k]));
    }
    EACH {
        e[k] = sigmoid(5 * (v[k] - threshold));
        z[k] = u[k] * e[k];
    }
}

// From dz, the gradient of z: du, and to the running sums dgain and doffset the gradients of gain and offset.
INLINE void gate_backward(IN dz, IN u, IN v, IN e, IN gain, OUT du, OUT dgain, OUT doffset, int n) {
    EACH {
        float d = 5 * dz[k] * u[k] * (e[k] * (1 - e[k])) * (v[k] * (1 - v[k]));
        dgain[k] = FMA(d, u[k], dgain[k]);
        doffset[k] += d;
        du[k] = FMA(dz[k], e[k], d * gain[k]);
    }
}

// Hard events: y, which holds s t + b, becomes b where |x| <= threshold, and fired counts the other tokens.
INLINE void silence(IN x, IN b, IN threshold, OUT y, OUT fired, int n) {
    EACH {
        y[k] = fabsf(x[k]) <= threshold[k] ? b[k] : y[k];
        fired[k] += fabsf(x[k]) > threshold[k] ? 1.0f : 0.0f;
    }
}

// From g, the gradient of `silence`'s y: dx with its surrogate, and the gradients of w, p and b as oscillate_backward.
INLINE void silence_backward(IN x, IN g, IN w, IN threshold, IN s, IN c, IN t, OUT dx, OUT dw, OUT dp, OUT db, int n) {
    float slope[TILE];
    EACH {
        float width = SURROGATE_WIDTH * threshold[k], narrow = 1 / (width > LEAST_WIDTH ? width : LEAST_WIDTH);
        float e = sigmoid((fabsf(x[k]) - threshold[k]) * narrow);
        slope[k] = copysignf(e * (1 - e) * narrow, x[k]);
    }
    EACH {
        float passed = fabsf(x[k]) <= threshold[k] ? 0 : g[k], d = passed * c[k] * t[k];
        dw[k] = FMA(d, x[k], dw[k]);
        dp[k] += d;
        db[k] += g[k];
        dx[k] = FMA(w[k], d, FMA(passed * s[k], FMA(-t[k], t[k], 1), g[k] * s[k] * t[k] * slope[k]));
    }
}

// x, y: (rows, f). w: nv vectors (f,): omega, phi, baseline and, for nv = 8, gain, offset, omega2, phi2, baseline2, or
// for nv = 4, the thresholds of hard events. Where g is NULL, the forward pass: y receives the output. Else the backward
// pass for g, the gradient of the output: y receives dx. sums (1 + blocks, ns, f) receives in its first slice the sum of
// the others: of ns = 3 or 8 gradients of vectors, which thresholds have not, or in the forward pass of nv = 4, where
// ns = 1, of the tokens on which each feature fires; else it is NULL.
// Each block of rows has a slice of its own, so neither the number of threads nor their order changes a bit.
void oscillation(int64_t rows, int64_t f, int64_t blocks, int nv, int ns, int threads, float threshold, const float *x,
                 const float *const *w, const float *g, float *y, float *sums) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t block = 0; block < blocks; block++) {
        float s[TILE], c[TILE], t[TILE], u[TILE], v[TILE], e[TILE], z[TILE], dz[TILE], s2[TILE], c2[TILE], t2[TILE];
        if (sums) memset(sums + (1 + block) * ns * f, 0, ns * f * sizeof(float));
        for (int64_t i = rows * block / blocks; i < rows * (block + 1) / blocks; i++)
            for (int64_t j = 0; j < f; j += TILE) {
                int n = f - j < TILE ? f - j : TILE;
                float *yi = y + i * f + j, *d = sums ? sums + (1 + block) * ns * f + j : NULL;
                const float *xi = x + i * f + j, *gi = g ? g + i * f + j : NULL;
                if (!g && nv < 8) oscillate(xi, w[0] + j, w[1] + j, w[2] + j, yi, NULL, NULL, NULL, n);
                if (!g && nv == 4) silence(xi, w[2] + j, w[3] + j, yi, d, n);
                if (!g && nv == 8) {
                    oscillate(xi, w[0] + j, w[1] + j, NULL, NULL, s, NULL, t, n);
                    gate(s, t, w[2] + j, w[3] + j, w[4] + j, threshold, u, v, e, z, n);
                    oscillate(z, w[5] + j, w[6] + j, w[7] + j, yi, NULL, NULL, NULL, n);
                }
                if (!g) continue;
                oscillate(xi, w[0] + j, w[1] + j, NULL, NULL, s, c, t, n);
                if (nv == 4) {
                    silence_backward(xi, gi, w[0] + j, w[3] + j, s, c, t, yi, d, d + f, d + 2 * f, n);
                    continue;
                }
                if (nv == 8) {
                    gate(s, t, w[2] + j, w[3] + j, w[4] + j, threshold, u, v, e, z, n);
                    oscillate(z, w[5] + j, w[6] + j, NULL, NULL, s2, c2, t2, n);
                    oscillate_backward(z, gi, w[5] + j, s2, c2, t2, dz, d + 5 * f, d + 6 * f, d + 7 * f, n);
                    gate_backward(dz, u, v, e, w[3] + j, z, d + 3 * f, d + 4 * f, n);
                    gi = z;
                }
                oscillate_backward(xi, gi, w[0] + j, s, c, t, yi, d, d + f, d + 2 * f, n);
            }
    }
    for (int64_t j = 0; sums && j < ns * f; j += TILE) {
        int n = ns * f - j < TILE ? ns * f - j : TILE;
        double sum[TILE] = {0};
        for (int64_t block = 1; block <= blocks; block++) EACH sum[k] += sums[block * ns * f + j + k];
        EACH sums[j + k] = sum[k];
    }
}
