// One token through an MLP with hard events, on the CPU in float32: what is silent is not read. Equations: event_mlp.py.
//
// The time is that of reading memory. So each thread lets three stages of its features follow one another, and a stage
// asks for what the next one reads: the rows of c_fc are screened, those of the candidates multiplied in full, and the
// columns of c_proj of what fires added up. The sums are kept by block of features, so neither the number of threads
// nor their order changes a bit. No -ffast-math: NaN and infinity must come through.
#include "oscillation.c" // its sine and hyperbolic tangent
#include "screen.c"

#define BLOCK 128 // features whose contributions are added up together, a multiple of GROUP

// c_fc's weight and c_proj's, transposed: (F, C) each; vectors (F,), of which bias may be NULL.
typedef struct {
    const float *rows, *columns, *bias, *threshold, *omega, *phi;
} Weights;

// list: those of the n features from `first` on that may fire -> their number.
static int find_candidates(const Screen *s, const Weights *w, const Vector *x, long first, int n, int32_t *list) {
    double middle[GROUP], bound[GROUP];
    int32_t silent[GROUP];
    screen(s, x, first, n, middle, bound);
    EACH {
        double h = w->bias ? middle[k] + w->bias[first + k] : middle[k];
        silent[k] = (fabs(h) + bound[k]) * 1.000001 < w->threshold[first + k];
    }
    int count = 0;
    EACH {
        list[count] = first + k;
        count += !silent[k];
    }
    for (int i = 0; i < count && i < AHEAD; i++) prefetch(s->rest + list[i] * x->stride, x->stride * sizeof(int16_t));
    return count;
}

// A token: x (width) itself, x / 2^16, padded with zeros to `stride`, and x in integers.
typedef struct {
    const float *x, *shrunk;
    Vector in;
} Token;

// list: those of the candidates that fire; output: what each gives beyond its baseline -> their number.
static int fire(const Screen *s, const Weights *w, const Token *token, const int32_t *candidates, int n, int32_t *list,
                float *output) {
    float h[GROUP], omega[GROUP], phi[GROUP], zero[GROUP] = {0};
    long C = token->in.width, stride = token->in.stride;
    int count = 0;
    for (int i = 0; i < n; i++) {
        long f = candidates[i], next = candidates[i + AHEAD < n ? i + AHEAD : n - 1];
        const float *row = w->rows + f * C;
        float value = s->spread[f] ? dot(row, token->x, C, row) : fine_product(s, f, next, token->shrunk, stride);
        if (w->bias) value += w->bias[f];
        if (fabsf(value) <= w->threshold[f]) continue; // a NaN fires
        prefetch(w->columns + f * C, C * sizeof(float));
        h[count] = value;
        omega[count] = w->omega[f];
        phi[count] = w->phi[f];
        list[count++] = f;
    }
    oscillate(h, omega, phi, zero, output, NULL, NULL, NULL, count);
    return count;
}

// sums: (blocks, C), of which the rows [first, last) receive what the features of those blocks add to the output.
// found: is increased by the numbers of features whose row, and whose column was read.
static void run_blocks(const Screen *s, const Weights *w, const Token *token, long F, long first, long last,
                       float *sums, int64_t *found) {
    long C = token->in.width, end = last * BLOCK < F ? last * BLOCK : F;
    int32_t candidates[GROUP], firing[GROUP];
    float output[GROUP];
    int waiting = 0, fired = 0, looked = 0, total = 0;
    memset(sums + first * C, 0, (last - first) * C * sizeof(float));
    for (long f = first * BLOCK; f < end + 2 * GROUP; f += GROUP) { // the last two rounds drain the stages
        for (int i = 0; i < fired; i++) {
            const float *restrict column = w->columns + firing[i] * C;
            float *restrict sum = sums + firing[i] / BLOCK * C;
            for (long c = 0; c < C; c++) sum[c] = FMA(output[i], column[c], sum[c]);
        }
        fired = fire(s, w, token, candidates, waiting, firing, output);
        waiting = f < end ? find_candidates(s, w, &token->in, f, end - f < GROUP ? end - f : GROUP, candidates) : 0;
        looked += waiting;
        total += fired;
    }
    found[0] += looked;
    found[1] += total;
}

// x, y: (C). p: the arrays of a Screen, of Weights, and last the constant (C) that c_proj gives where all are silent.
// bytes: (2, stride), shrunk: (stride) and sums: (blocks of F, C), scratch space. found: (threads, 2), see run_blocks.
void event_mlp(int64_t F, int64_t C, int64_t stride, int threads, const void *const *p, const float *x, uint8_t *bytes,
               float *shrunk, float *sums, int64_t *found, float *y) {
    Screen s = {p[0], p[1], p[2], p[3], p[4], p[5], p[6]};
    Weights w = {p[7], p[8], p[9], p[10], p[11], p[12]};
    const float *constant = p[13];
    Token token = {x, shrunk, quantise(x, C, stride, bytes)};
    for (long c = 0; c < stride; c++) shrunk[c] = c < C ? x[c] * 0x1p-16f : 0;
    long blocks = (F + BLOCK - 1) / BLOCK;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static)
        for (int part = 0; part < threads; part++)
            run_blocks(&s, &w, &token, F, blocks * part / threads, blocks * (part + 1) / threads, sums,
                       found + 2 * part);
#pragma omp for schedule(static)
        for (long j = 0; j < C; j += TILE) {
            int n = C - j < TILE ? C - j : TILE;
            EACH y[j + k] = constant[j + k];
            for (long block = 0; block < blocks; block++) EACH y[j + k] += sums[block * C + j + k];
        }
    }
}
