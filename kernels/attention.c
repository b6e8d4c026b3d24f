// Causal self-attention on the CPU, forward and backward, in float32. Equations: attention.py.
//
// One head of one sequence is one task of a thread, so neither the number of threads nor their order changes a bit. The
// task works in a scratch space that fits the second-level cache, on BLOCK queries at a time, and skips keys past the
// causal mask's diagonal. The backward pass computes the probabilities anew: the forward pass keeps nothing for it.
// Matrices are padded with zeros to whole tiles. No -ffast-math: NaN and infinity must come through.
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
extern int omp_get_thread_num(void); // of torch's own runtime; omp.h is not installed everywhere
#else
#define omp_get_thread_num() 0
#endif

#ifdef __AVX512F__
#define LANES 16 // floats in a register
#else
#define LANES 8
#endif
#define WIDE (2 * LANES) // columns of a tile
#define ROWS 4           // rows of a tile: 8 registers of sums keep two multipliers with 4 cycles of latency busy
#define BLOCK 16         // queries at a time; WIDE is a multiple of it
#define ROUND 12582912.0f // 1.5 * 2^23: adding it rounds a float to an integer, held by the low bits of the sum
#define INLINE static inline __attribute__((always_inline))
#define PADDED(n) (((n) + WIDE - 1) / WIDE * WIDE)

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE float sum_of_lanes(const float *part) {
    float total = 0;
    for (int l = 0; l < LANES; l++) total += part[l];
    return total;
}

// c = a b, or c += a b where add is 1. a: (rows, n) with strides ai and ak, b: (n, columns) with row stride bk,
// c: (rows, columns) with row stride ck; rows and columns are multiples of a tile's.
INLINE void multiply(long rows, long columns, long n, const float *a, long ai, long ak, const float *b, long bk,
                     float *c, long ck, int add) {
    for (long j = 0; j < columns; j += WIDE)
        for (long i = 0; i < rows; i += ROWS) {
            vec s[ROWS][2] = {0};
            const float *row = a + i * ai, *column = b + j;
#pragma GCC unroll 4
            for (long k = 0; k < n; k++) {
                vec left = *(const vec *)(column + k * bk), right = *(const vec *)(column + k * bk + LANES);
                for (int r = 0; r < ROWS; r++) {
                    s[r][0] += row[r * ai + k * ak] * left;
                    s[r][1] += row[r * ai + k * ak] * right;
                }
            }
            for (int r = 0; r < ROWS; r++)
                for (int h = 0; h < 2; h++) {
                    vec *to = (vec *)(c + (i + r) * ck + j + h * LANES);
                    if (add) s[r][h] += *to;
                    *to = s[r][h];
                }
        }
}

// Normalise x (D), padded with zeros, where norm is 1, and rotate it unless cosine is NULL, in place -> the factor
// 1 / sqrt(mean(x^2) + 1e-6), or 1.
INLINE float make_ready(float *restrict x, long D, int norm, const float *cosine, const float *sine) {
    long Dp = PADDED(D), half = D / 2;
    float r = 1;
    if (norm) {
        float part[LANES] = {0};
        for (long d = 0; d < Dp; d += LANES)
            for (int l = 0; l < LANES; l++) part[l] += x[d + l] * x[d + l];
        r = 1 / sqrtf(sum_of_lanes(part) / D + 1e-6f);
        for (long d = 0; d < Dp; d++) x[d] *= r;
    }
    if (cosine) {
        float *restrict a = x, *restrict b = x + half;
        for (long d = 0; d < half; d++) {
            float first = a[d], second = b[d];
            a[d] = first * cosine[d] - second * sine[d];
            b[d] = first * sine[d] + second * cosine[d];
        }
    }
    return r;
}

// Copy one head's queries, keys or values x (T, D), rows `stride` apart, to y, padded: normalised, with the factors
// r = 1 / sqrt(mean(x^2) + 1e-6), unless r is NULL, then rotated unless cosine is NULL. Unless transpose is NULL, y is
// copied there, too, transposed.
static void load_head(const float *x, long stride, long T, long D, const float *cosine, const float *sine,
                      float *restrict r, float *restrict y, float *restrict transpose) {
    long Tp = PADDED(T), Dp = PADDED(D), half = D / 2;
    memset(y + T * Dp, 0, (Tp - T) * Dp * sizeof(float));
    for (long t = 0; t < T; t++, y += Dp) {
        memcpy(y, x + t * stride, D * sizeof(float));
        for (long d = D; d < Dp; d++) y[d] = 0;
        float factor = make_ready(y, D, r != NULL, cosine ? cosine + t * half : NULL, cosine ? sine + t * half : NULL);
        if (r) r[t] = factor;
    }
    if (!transpose) return;
    y -= T * Dp;
    for (long t = 0; t < Tp; t += LANES)
        for (long d = 0; d < D; d++)
            for (int l = 0; l < LANES; l++) transpose[d * Tp + t + l] = y[(t + l) * Dp + d];
}

// The backward pass of load_head: from dy, the gradient of its y, compute dx, the gradient of its x, rows `stride`
// apart. dy is overwritten.
static void load_head_backward(float *restrict dy, const float *y, const float *r, long stride, long rows, long D,
                               const float *cosine, const float *sine, float *restrict dx) {
    long Dp = PADDED(D), half = D / 2;
    for (long t = 0; t < rows; t++, dy += Dp, y += Dp, dx += stride) {
        if (r) { // dx = r (dy - y mean(dy y)): a rotation changes no dot product, so y and dy may both still be rotated
            float part[LANES] = {0};
            for (long d = 0; d < Dp; d += LANES)
                for (int l = 0; l < LANES; l++) part[l] += dy[d + l] * y[d + l];
            float along = sum_of_lanes(part) / D;
            for (long d = 0; d < Dp; d++) dy[d] = r[t] * (dy[d] - along * y[d]);
        }
        if (!cosine) {
            memcpy(dx, dy, D * sizeof(float));
            continue;
        }
        const float *c = cosine + t * half, *s = sine + t * half;
        for (long d = 0; d < half; d++) {
            dx[d] = dy[d] * c[d] + dy[d + half] * s[d];
            dx[d + half] = dy[d + half] * c[d] - dy[d] * s[d];
        }
    }
}

// s[:n] = softmax(scale s[:n]), s[n:columns] = 0. exp(x) = 2^i 2^f with |f| <= 1/2 and 2^f a polynomial fitted to 2e-9.
INLINE void softmax(float *restrict s, long n, long columns, float scale) {
    float part[LANES], top = s[0];
    for (long k = n; k < columns; k++) s[k] = top;
    for (int l = 0; l < LANES; l++) part[l] = top;
    for (long k = 0; k < columns; k += LANES)
        for (int l = 0; l < LANES; l++) part[l] = s[k + l] > part[l] ? s[k + l] : part[l];
    for (int l = 0; l < LANES; l++) top = part[l] > top ? part[l] : top;
    for (long k = 0; k < columns; k++) {
        float x = (s[k] - top) * (scale * 1.44269504f);
        x = x < -126 ? -126 : x;
        float whole = x + ROUND, f = x - (whole - ROUND);
        float p = 0.000153458124f * f + 0.00133999309f;
        p = (((((p * f + 0.00961848907f) * f + 0.0555032864f) * f + 0.240226462f) * f + 0.693147182f) * f + 1);
        int32_t i;
        memcpy(&i, &whole, 4);
        i = (int32_t)((uint32_t)i << 23) + 0x3f800000; // the low bits of `whole` become the exponent of 2^i
        float power;
        memcpy(&power, &i, 4);
        s[k] = p * power;
    }
    memset(s + n, 0, (columns - n) * sizeof(float));
    memset(part, 0, sizeof part);
    for (long k = 0; k < columns; k += LANES)
        for (int l = 0; l < LANES; l++) part[l] += s[k + l];
    float factor = 1 / sum_of_lanes(part);
    for (long k = 0; k < columns; k++) s[k] *= factor;
}

// The number of floats of scratch space that one thread needs.
int64_t attention_scratch(int64_t T, int64_t D) {
    return (8 * PADDED(D) + 2 * BLOCK + 2) * PADDED(T) + BLOCK * PADDED(D);
}

// qkv: (B, T, 3, H, D), queries, keys and values. norm: whether queries and keys are normalised. cosine, sine:
// (T, D/2), which rotate them, or NULL. scratch: threads times attention_scratch floats.
// Where dy is NULL, the forward pass: y (B, T, H, D) receives the heads' outputs. Else the backward pass for dy, the
// gradient of those outputs: y (B, T, 3, H, D) receives the gradient of qkv.
void attention(int64_t B, int64_t T, int64_t H, int64_t D, int threads, int norm, const float *qkv, const float *cosine,
               const float *sine, const float *dy, float *y, float *scratch) {
    long Tp = PADDED(T), Dp = PADDED(D), C = H * D, size = Tp * Dp;
    float scale = 1 / sqrtf(D);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t task = 0; task < B * H; task++) {
        float *q = scratch + omp_get_thread_num() * attention_scratch(T, D), *k = q + size, *v = k + size;
        float *g = v + size, *dk = g + size, *dv = dk + size, *kt = dv + size, *vt = kt + size; // g is dy of this head
        float *p = vt + size, *dp = p + BLOCK * Tp, *out = dp + BLOCK * Tp; // p: probabilities, dp: their gradients
        float *rq = norm ? out + BLOCK * Dp : NULL, *rk = norm ? rq + Tp : NULL;
        long first = task / H * T, head = task % H * D; // the sequence's first row, the head's first column
        const float *x = qkv + first * 3 * C + head;
        float *dx = y + first * 3 * C + head; // of the backward pass alone
        load_head(x, 3 * C, T, D, cosine, sine, rq, q, NULL);
        load_head(x + C, 3 * C, T, D, cosine, sine, rk, k, kt);
        load_head(x + 2 * C, 3 * C, T, D, NULL, NULL, NULL, v, dy ? vt : NULL);
        if (dy) {
            load_head(dy + first * C + head, C, T, D, NULL, NULL, NULL, g, NULL);
            memset(dk, 0, 2 * size * sizeof(float));
        }
        for (long i = 0; i < T; i += BLOCK) {
            long seen = i + BLOCK, columns = PADDED(seen), rows = T - i < BLOCK ? T - i : BLOCK;
            multiply(BLOCK, columns, D, q + i * Dp, Dp, 1, kt, Tp, p, Tp, 0);
            for (long r = 0; r < rows; r++) softmax(p + r * Tp, i + r + 1, columns, scale);
            for (long r = rows; r < BLOCK; r++) memset(p + r * Tp, 0, columns * sizeof(float));
            if (!dy) {
                multiply(BLOCK, Dp, seen, p, Tp, 1, v, Dp, out, Dp, 0);
                for (long r = 0; r < rows; r++)
                    memcpy(y + (first + i + r) * C + head, out + r * Dp, D * sizeof(float));
                continue;
            }
            multiply(seen, Dp, BLOCK, p, 1, Tp, g + i * Dp, Dp, dv, Dp, 1);
            multiply(BLOCK, columns, D, g + i * Dp, Dp, 1, vt, Tp, dp, Tp, 0);
            for (long r = 0; r < BLOCK; r++) { // dp becomes the gradient of q k^T: scale p (dp - sum(p dp))
                float *s = p + r * Tp, *ds = dp + r * Tp, part[LANES] = {0};
                for (long j = i + r + 1; j < columns; j++) ds[j] = 0;
                for (long j = 0; j < columns; j += LANES)
                    for (int l = 0; l < LANES; l++) part[l] += s[j + l] * ds[j + l];
                float along = sum_of_lanes(part);
                for (long j = 0; j < columns; j++) ds[j] = scale * s[j] * (ds[j] - along);
            }
            multiply(BLOCK, Dp, seen, dp, Tp, 1, k, Dp, out, Dp, 0);
            multiply(seen, Dp, BLOCK, dp, 1, Tp, q + i * Dp, Dp, dk, Dp, 1);
            load_head_backward(out, q + i * Dp, norm ? rq + i : NULL, 3 * C, rows, D,
                               cosine ? cosine + i * (D / 2) : NULL, cosine ? sine + i * (D / 2) : NULL,
                               dx + i * 3 * C);
        }
        if (!dy) continue;
        load_head_backward(dk, k, rk, 3 * C, T, D, cosine, sine, dx + C);
        load_head_backward(dv, v, NULL, 3 * C, T, D, NULL, NULL, dx + 2 * C);
    }
}

// The dot product of q and k (D), summed up in a tree: the chains of a sum in order would be waited for.
INLINE float dot(const float *q, const float *k, long D) {
    float part[LANES] = {0};
    long d = 0;
    for (; d + LANES <= D; d += LANES)
        for (int l = 0; l < LANES; l++) part[l] += q[d + l] * k[d + l];
    for (; d < D; d++) part[d % LANES] += q[d] * k[d];
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) part[l] += part[l + half];
    return part[0];
}

// The number of floats of scratch space that one thread needs for a step at place n - 1.
int64_t attention_step_scratch(int64_t n, int64_t D) { return PADDED(n) + 2 * PADDED(D); }

// One token of each sequence, at place n - 1, with the keys and values of those before it kept: qkv: (B, 3, H, D); keys
// and values: (B, H, tokens, D), whose rows n - 1 receive the token's own; y: (B, H, D); norm, cosine and sine (D/2) as
// above; scratch: threads times attention_step_scratch floats.
void attention_step(int64_t B, int64_t H, int64_t D, int64_t tokens, int64_t n, int threads, int norm, const float *qkv,
                    const float *cosine, const float *sine, float *keys, float *values, float *y, float *scratch) {
    long C = H * D;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t task = 0; task < B * H; task++) {
        float *p = scratch + omp_get_thread_num() * attention_step_scratch(n, D), *q = p + PADDED(n);
        float *restrict out = q + PADDED(D), *key = keys + task * tokens * D, *value = values + task * tokens * D;
        const float *x = qkv + task / H * 3 * C + task % H * D;
        memset(q, 0, 2 * PADDED(D) * sizeof(float));
        memcpy(q, x, D * sizeof(float));
        memcpy(out, x + C, D * sizeof(float));
        make_ready(q, D, norm, cosine, sine);
        make_ready(out, D, norm, cosine, sine);
        memcpy(key + (n - 1) * D, out, D * sizeof(float));
        memcpy(value + (n - 1) * D, x + 2 * C, D * sizeof(float));
        for (long j = 0; j < n; j++) p[j] = dot(q, key + j * D, D);
        softmax(p, n, PADDED(n), 1 / sqrtf(D));
        memset(out, 0, D * sizeof(float));
        long j = 0;
        for (const float *v = value; j + 4 <= n; j += 4, v += 4 * D)
            for (long d = 0; d < D; d++)
                out[d] += p[j] * v[d] + p[j + 1] * v[D + d] + (p[j + 2] * v[2 * D + d] + p[j + 3] * v[3 * D + d]);
        for (; j < n; j++)
            for (long d = 0; d < D; d++) out[d] += p[j] * value[j * D + d];
        memcpy(y + task * D, out, D * sizeof(float));
    }
}
