// A matrix's rows screened through an 8-bit copy: a product with one vector, and how far from the exact one it can be.
// Equations: screen.py. event_mlp.c includes this file.
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512VNNI__
#include <immintrin.h>
#endif

#define CHUNK 64 // bytes of a row that lie together in the 8-bit copy
#define ROWS 4   // rows whose chunks alternate in the 8-bit copy, so that reading it is one linear stream
#define GROUP 128 // rows that are screened together, at most
#define LANES 16 // numbers that a dot product adds up side by side
#define AHEAD 2  // rows that are asked for before their turn
#define FEW 16   // rows of which likeliest.py looks at the best one alone; GROUP is a multiple
#define UP 1.000001 // rounds a norm upwards, from double to float
#define UNLIKE 16 // times the mean size that the largest of a row may be, for 24 bits to hold the others well

// screen.py's Screen.
typedef struct {
    const int8_t *coarse;                    // (rows / ROWS, stride / CHUNK, ROWS, CHUNK)
    const float *scale, *error, *norm, *sum; // (rows,) each
    const int16_t *rest;                     // (rows, stride), or NULL
    const uint8_t *spread;                   // (rows,)
} Screen;

// x in 16-bit integers: x = step (256 (high - 128) + low) + r, with size >= |x| and lost >= |r|.
typedef struct {
    const uint8_t *high, *low; // (stride,) each
    double step, size, lost;
    long width, stride;
} Vector;

// Round x (width), padded with zeros, into space (2, stride). Where a number is not finite, or nearly so, size is not.
static Vector quantise(const float *x, long width, long stride, uint8_t *space) {
    uint8_t *high = space, *low = space + stride;
    double largest = 0, squares = 0, lost = 0;
    for (long c = 0; c < width; c++) {
        largest = fabs(x[c]) > largest ? fabs(x[c]) : largest;
        squares += (double)x[c] * x[c];
    }
    int usable = squares < 1e60 && largest > 1e-30;
    double step = usable ? largest / 32767 : 1, inverse = usable ? 32767 / largest : 0;
    for (long c = 0; c < width; c++) {
        int whole = usable ? (int)lrint(x[c] * inverse) : 0;
        double rest = x[c] - step * whole;
        lost += rest * rest;
        high[c] = (whole >> 8) + 128;
        low[c] = whole & 255;
    }
    for (long c = width; c < stride; c++) high[c] = low[c] = 0;
    double size = squares < 1e60 ? sqrt(squares) * (1 + 1e-9) : INFINITY;
    return (Vector){high, low, step, size, sqrt(lost) * (1 + 1e-9), width, stride};
}

// high[r], low[r]: the dot products of row r of q with both halves of x. count: rows, a multiple of ROWS.
#ifdef __AVX512VNNI__
static inline __m128i sums_of_lanes(const __m512i *v) {
    __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
    __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
    __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}
static void integer_products(const int8_t *q, long count, const Vector *x, int32_t *high, int32_t *low) {
    for (long r = 0; r < count; r += ROWS) {
        __m512i h[ROWS] = {0}, l[ROWS] = {0};
        for (long c = 0; c < x->stride; c += CHUNK) {
            __m512i xh = _mm512_loadu_si512(x->high + c), xl = _mm512_loadu_si512(x->low + c);
            for (int k = 0; k < ROWS; k++, q += CHUNK) {
                __m512i w = _mm512_loadu_si512(q);
                h[k] = _mm512_dpbusd_epi32(h[k], xh, w);
                l[k] = _mm512_dpbusd_epi32(l[k], xl, w);
            }
        }
        _mm_storeu_si128((__m128i *)(high + r), sums_of_lanes(h));
        _mm_storeu_si128((__m128i *)(low + r), sums_of_lanes(l));
    }
}
#else
static void integer_products(const int8_t *q, long count, const Vector *x, int32_t *high, int32_t *low) {
    for (long r = 0; r < count; r++) high[r] = low[r] = 0;
    for (long r = 0; r < count; r += ROWS)
        for (long c = 0; c < x->stride; c += CHUNK)
            for (int k = 0; k < ROWS; k++, q += CHUNK) {
                int32_t h = 0, l = 0;
                for (int i = 0; i < CHUNK; i++) {
                    h += q[i] * x->high[c + i];
                    l += q[i] * x->low[c + i];
                }
                high[r + k] += h;
                low[r + k] += l;
            }
}
#endif

// For the rows [first, first + n), first a multiple of ROWS and n <= GROUP: the middle and the half width of an
// interval that holds the row's product with x, computed in float32 in whatever order. Not finite, or too wide, for an
// x that is not usable.
static void screen(const Screen *s, const Vector *x, long first, int n, double *middle, double *bound) {
    int32_t high[GROUP], low[GROUP];
    integer_products(s->coarse + first * x->stride, (n + ROWS - 1) / ROWS * ROWS, x, high, low);
    const float *scale = s->scale + first, *error = s->error + first, *norm = s->norm + first, *sum = s->sum + first;
    double rounding = 1.01 * (x->width + 8) * 0x1p-24, near = x->size + x->lost, far = x->lost + rounding * x->size;
    for (int k = 0; k < n; k++) {
        middle[k] = scale[k] * x->step * (256 * ((double)high[k] - sum[k]) + low[k]);
        bound[k] = error[k] * near + norm[k] * far + 1e-35; // the last for products that underflow
    }
}

// Ask for so many bytes in the second-level cache, which can wait for far more of memory than the first-level cache.
static inline void prefetch(const void *row, long bytes) {
    for (long i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)row + i, 0, 2);
}

// The dot product of a and b; meanwhile n floats of `next` are asked for.
static inline float dot(const float *restrict a, const float *restrict b, long n, const float *next) {
    float part[4 * LANES] = {0}, total = 0;
    long c = 0;
    for (; c + 4 * LANES <= n; c += 4 * LANES) {
        prefetch(next + c, 4 * LANES * sizeof(float));
        for (int l = 0; l < 4 * LANES; l++) part[l] += a[c + l] * b[c + l];
    }
    for (; c < n; c++) part[c % LANES] += a[c] * b[c];
    for (int l = 0; l < LANES; l++) total += (part[l] + part[l + LANES]) + (part[l + 2 * LANES] + part[l + 3 * LANES]);
    return total;
}

// The product of row r with x, from 24-bit integers: scale (coarse + rest / 2^16). shrunk: x / 2^16, padded with zeros
// to `stride`. Meanwhile the rest of row `next` is asked for.
static inline float fine_product(const Screen *s, long r, long next, const float *restrict shrunk, long stride) {
    const int8_t *restrict q = s->coarse + r / ROWS * ROWS * stride + r % ROWS * CHUNK;
    const int16_t *restrict rest = s->rest + r * stride;
    float part[CHUNK] = {0};
    for (long c = 0; c < stride; c += CHUNK, q += ROWS * CHUNK) {
        prefetch(s->rest + next * stride + c, CHUNK * sizeof(int16_t));
        for (int l = 0; l < CHUNK; l++) part[l] += (float)(q[l] * 65536 + rest[c + l]) * shrunk[c + l];
    }
    for (int half = CHUNK / 2; half; half /= 2)
        for (int l = 0; l < half; l++) part[l] += part[l + half];
    return s->scale[r] * part[0];
}

// Fill in a Screen of the weight (rows, width), of which coarse and rest, unless that is NULL, are 0 beforehand.
void screen_rows(int64_t rows, int64_t width, int64_t stride, int threads, const float *weight, int8_t *coarse,
                 float *scale, float *error, float *norm, float *sum, int16_t *rest, uint8_t *spread) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t r = 0; r < rows; r++) {
        const float *w = weight + r * width;
        int8_t *q = coarse + r / ROWS * ROWS * stride + r % ROWS * CHUNK; // the row's first chunk
        float largest = 0;
        for (long c = 0; c < width; c++) largest = fabsf(w[c]) > largest ? fabsf(w[c]) : largest;
        float step = largest / 127 > 1e-30f ? largest / 127 : 1e-30f, inverse = largest < 1e37f ? 1 / step : 0;
        double errors = 0, squares = 0, sizes = 0;
        long total = 0;
        for (long c = 0; c < width; c++) {
            double near = w[c] * (double)inverse;
            near = near > 127 ? 127 : near >= -127 ? near : near < 0 ? -127 : 0; // 0 for NaN
            int fine = lrint(65536 * near), whole = (fine + 32768) >> 16;
            double e = w[c] - (double)step * whole;
            q[c / CHUNK * ROWS * CHUNK + c % CHUNK] = whole;
            if (rest) rest[r * stride + c] = fine - whole * 65536;
            errors += e * e;
            squares += (double)w[c] * w[c];
            sizes += fabsf(w[c]);
            total += whole;
        }
        scale[r] = squares < INFINITY ? step : NAN;
        spread[r] = !((double)largest * width <= UNLIKE * sizes && largest > 1e-28f && largest < 1e30f);
        error[r] = sqrt(errors) * UP;
        norm[r] = sqrt(squares) * UP;
        sum[r] = 128 * total;
    }
}

// The interval of each row's product with x (width), and its maximum of lower ends over every FEW rows: upper (rows),
// best (rows / FEW, rounded up). bytes: (2, stride), scratch space. Returns 0 where x is not usable.
int screen_products(int64_t rows, int64_t width, int64_t stride, int threads, const void *const *p, const float *x,
                    uint8_t *bytes, float *upper, float *best) {
    Screen s = {p[0], p[1], p[2], p[3], p[4], NULL, p[6]};
    Vector in = quantise(x, width, stride, bytes);
    if (!(in.size < INFINITY)) return 0;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t first = 0; first < rows; first += GROUP) {
        double middle[GROUP], bound[GROUP];
        int n = rows - first < GROUP ? rows - first : GROUP;
        screen(&s, &in, first, n, middle, bound);
        for (int k = 0; k < n; k += FEW) best[(first + k) / FEW] = -INFINITY;
        for (int k = 0; k < n; k++) {
            float low = middle[k] - bound[k] * UP - fabs(middle[k]) * 1e-6, *most = best + (first + k) / FEW;
            upper[first + k] = middle[k] + bound[k] * UP + fabs(middle[k]) * 1e-6;
            *most = low > *most ? low : *most;
        }
    }
    return 1;
}

// ids: the rows whose upper end is not below `least`, in order, product: theirs with x -> their number.
int64_t products_of_likely(int64_t rows, int64_t width, int threads, float least, const float *upper,
                           const float *weight, const float *x, int64_t *ids, float *product) {
    int64_t count = 0;
    for (int64_t r = 0; r < rows; r++) {
        ids[count] = r;
        count += !(upper[r] < least);
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < count; i++) {
        int64_t next = ids[i + AHEAD < count ? i + AHEAD : i];
        product[i] = dot(weight + ids[i] * width, x, width, weight + next * width);
    }
    return count;
}
