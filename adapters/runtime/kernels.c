/* CPU kernels for what torch has no operator for, or only several: low-rank updates of a mixed batch, attention of
 * decoding rows over a paged cache, RMSNorm, and the gate of a Llama-like MLP. Compiled once per machine by kernels.py, for bf16 and fp32.
 * In bf16 also linear layers: kernels_linear.h.
 *
 * Each token's numbers come from one fixed order of operations, whatever else is in the batch.
 * All arithmetic is in fp32; inputs are read and results rounded in the backbone's dtype.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define TILE 4          /* tokens that share one read of A and B */
#define VECTORS 4       /* vectors of outputs held in registers at once */
/* MAX_RANK comes from the command line: the largest rank that a bundle may have */
#define MAX_HEAD 256    /* head size */
#define MAX_HEADS 32    /* query heads that one task of attention holds, those of one key-value head at least */
#define LANES 16        /* floats of a vector register */
#define BLOCK 16        /* cells of a cache block; cache.py has the same number */

typedef uint16_t bf16;
typedef float vec __attribute__((vector_size(4 * LANES), may_alias));

/* The sum of a vector's lanes, by halves: one after the other they would wait for each other. */
static inline float sum_of(vec x) {
    typedef float half __attribute__((vector_size(2 * LANES)));
    typedef float quarter __attribute__((vector_size(LANES)));
    union { vec whole; half parts[2]; } halves = {x};
    union { half whole; quarter parts[2]; } quarters = {halves.parts[0] + halves.parts[1]};
    quarter rest = quarters.parts[0] + quarters.parts[1];
    return (rest[0] + rest[2]) + (rest[1] + rest[3]);
}

typedef int32_t lanes __attribute__((vector_size(4 * LANES)));

#ifdef __clang__
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (lanes){__VA_ARGS__})
#endif

/* The sums of 16 vectors' lanes, in one vector: halves of two are added into one, four times. */
static inline __attribute__((always_inline)) vec sums_of(vec *x) {
    for (int i = 0; i < 8; i++)
        x[i] = SHUFFLE(x[i], x[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               SHUFFLE(x[i], x[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; i++)
        x[i] = SHUFFLE(x[i], x[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               SHUFFLE(x[i], x[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++)
        x[i] = SHUFFLE(x[i], x[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               SHUFFLE(x[i], x[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return SHUFFLE(x[0], x[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           SHUFFLE(x[0], x[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

#ifdef __AVX512BF16__
#include <immintrin.h>
#define PAIRS
static inline vec read_lanes(const void *from) {
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from)), 16);
}

static inline void write_lanes(void *to, vec x) { /* rounds to nearest even */
    _mm256_storeu_si256(to, (__m256i)_mm512_cvtneps_pbh((__m512)x));
}

static inline vec dot_pairs(vec sum, const void *a, const void *b) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(a), (__m512bh)_mm512_loadu_si512(b));
}

/* Lay lines side by side, pairs of their values together: [pairs, rows]; lines beyond num repeat the last. Both rows and
 * pairs are multiples of 8. */
static void pair_up(const bf16 *x, int64_t stride, int num, int rows, int64_t pairs, uint32_t *to) {
    for (int first = 0; first < rows; first += 8) {
        const bf16 *from[8];
        for (int i = 0; i < 8; i++) from[i] = x + (first + i < num ? first + i : num - 1) * stride;
        for (int64_t k = 0; k < pairs; k += 8) {
            __m256i v[8], a[8], b[8];
            for (int i = 0; i < 8; i++) v[i] = _mm256_loadu_si256((const void *)(from[i] + k * 2));
            for (int i = 0; i < 8; i += 2) {
                a[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
                a[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
            }
            for (int i = 0; i < 8; i += 4)
                for (int j = 0; j < 2; j++) {
                    b[i + 2 * j] = _mm256_unpacklo_epi64(a[i + j], a[i + 2 + j]);
                    b[i + 2 * j + 1] = _mm256_unpackhi_epi64(a[i + j], a[i + 2 + j]);
                }
            for (int j = 0; j < 4; j++) {
                _mm256_storeu_si256((void *)(to + (k + j) * rows + first), _mm256_permute2x128_si256(b[j], b[4 + j], 0x20));
                _mm256_storeu_si256((void *)(to + (k + 4 + j) * rows + first), _mm256_permute2x128_si256(b[j], b[4 + j], 0x31));
            }
        }
    }
}

/* q k of 16 queries and 16 cells, both laid out by pair_up: a vector of cells for each query. */
static inline __attribute__((always_inline)) void score_tile(const uint32_t *queries, const uint32_t *panel, int pairs,
                                                             vec *scores) {
    __m512 sums[BLOCK];
    for (int i = 0; i < BLOCK; i++) sums[i] = _mm512_setzero_ps();
    for (int k = 0; k < pairs; k++) {
        __m512bh cells = (__m512bh)_mm512_loadu_si512(panel + k * BLOCK);
        for (int i = 0; i < BLOCK; i++)
            sums[i] = _mm512_dpbf16_ps(sums[i], (__m512bh)_mm512_set1_epi32((int)queries[k * BLOCK + i]), cells);
    }
    for (int i = 0; i < BLOCK; i++) scores[i] = (vec)sums[i];
}
#endif

static inline void ask_for(const void *start, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)start + i, 0, 3);
}

static inline float load_bf16(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline bf16 store_bf16(float value) { /* round to nearest even; NaN stays NaN */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : (bf16)rounded;
}

static inline float load_f32(float x) { return x; }
static inline float store_f32(float x) { return x; }

/* exp(x) for x <= 0, within 2e-7 of expf: a polynomial the compiler can vectorise (Cephes' expf). */
static inline float exp_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = __builtin_rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return p * scale;
}

static inline vec choose(lanes where, vec x, vec y) { return (vec)((where & (lanes)x) | (~where & (lanes)y)); }

static inline vec exp_lanes(vec x) {
    vec y;
    for (int i = 0; i < LANES; i++) ((float *)&y)[i] = exp_negative(((float *)&x)[i]);
    return y;
}

static inline vec size_of(vec x) { return (vec)((lanes)x & 0x7FFFFFFF); }

static inline vec sigmoid_of(vec x) {
    vec e = exp_lanes(-size_of(x));
    return choose(x < 0, e, (vec){0} + 1.0f) / (1.0f + e);
}

/* Scores of 16 cells (a vector of queries each) whose query may not see them become -inf. at: the first query's place,
 * counted from the block's first cell. */
static void hide_cells(vec *scores, int64_t at, int there, int causal, int64_t window) {
    for (int c = 0; c < BLOCK; c++)
        for (int i = 0; i < LANES; i++) {
            int64_t ahead = c - (at + i);
            if (c >= there || ahead >= window || -ahead >= window || (causal && ahead > 0)) ((float *)&scores[c])[i] = -INFINITY;
        }
}

/* Turn scores of 16 cells, a vector of queries each, into their weights beside what came before: top is the largest score
 * so far, total the sum of weights. Returns what earlier sums shrink by. */
static inline __attribute__((always_inline)) vec take_weights(vec *scores, vec *top, vec *total) {
    vec most = *top, sum = {0}, shrunk;
    for (int c = 0; c < BLOCK; c++) most = choose(scores[c] > most, scores[c], most);
    vec base = choose(most == -INFINITY, (vec){0}, most); /* nothing seen yet */
    for (int c = 0; c < BLOCK; c++) {
        vec weight = exp_lanes(scores[c] - base);
        scores[c] = choose(scores[c] == -INFINITY, (vec){0}, weight);
        sum += scores[c];
    }
    shrunk = exp_lanes(*top - base);
    *total = *total * shrunk + sum;
    *top = most;
    return shrunk;
}

#include "kernels_rows.h"

#define TYPE bf16
#define LOAD load_bf16
#define STORE store_bf16
#define NAME(x) x##_bf16
#include "kernels_typed.h"
#include "kernels_gradient.h"
#undef TYPE
#undef LOAD
#undef STORE
#undef NAME

#define TYPE float
#define LOAD load_f32
#define STORE store_f32
#define NAME(x) x##_f32
#include "kernels_typed.h"
#include "kernels_gradient.h"

#include "kernels_linear.h"
