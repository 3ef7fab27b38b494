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

#ifndef LANES           /* floats of a vector register; longer vectors would be taken apart number by number */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#endif
#define TILE 4          /* tokens that share one read of A and B */
#define VECTORS (LANES == 16 ? 4 : 2) /* vectors of outputs held in registers at once: AVX has half as many as AVX-512 */
/* MAX_RANK comes from the command line: the largest rank that a bundle may have */
#define TOGETHER (LANES < 8 ? LANES : 8) /* sums of attention held in registers at once */
#define MAX_HEAD 256    /* head size */
#define MAX_HEADS 32    /* query heads that one task of attention holds, those of one key-value head at least */
#define SPAN 256        /* cells of a row whose weights one task of attention holds */
#define NEAREST (12 * 1024) /* bytes that may wait in the first cache */
#define VALUES_AHEAD 4  /* blocks of one head's values that are asked for in advance */
#define SHARE 4         /* heads that share one read of values, beside WIDE vectors of each: their sums stay in registers */
#define WIDE(heads) (LANES == 16 || (heads) <= 2 ? 4 : 2)
#define BLOCK 16        /* cells of a cache block; cache.py has the same number */

/* What replay can call; in the order of kernels.py. */
enum kernel { LORA, ATTEND, RMS_NORM, SILU_MUL, ROTATE, KEEP, ADD, LINEAR };
#define CALL 16         /* numbers of a recorded call: kernel, type, up to 14 arguments */

typedef uint16_t bf16;
typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef float anywhere __attribute__((vector_size(4 * LANES), may_alias, aligned(4)));
typedef int32_t lanes __attribute__((vector_size(4 * LANES)));
typedef uint32_t places __attribute__((vector_size(4 * LANES)));
typedef uint16_t narrow __attribute__((vector_size(2 * LANES), may_alias, aligned(2)));

#ifdef __clang__
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (lanes){__VA_ARGS__})
#endif

/* FRONT_N takes every other N lanes of x, beginning with the first, and puts the same lanes of y between them; BACK_N takes
 * what FRONT_N leaves. COUNT: 0, 1, 2 and so on. */
#if LANES == 16
#define COUNT 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#define FRONT_8(x, y) SHUFFLE(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
#define BACK_8(x, y) SHUFFLE(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
#define FRONT_4(x, y) SHUFFLE(x, y, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27)
#define BACK_4(x, y) SHUFFLE(x, y, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31)
#define FRONT_2(x, y) SHUFFLE(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define BACK_2(x, y) SHUFFLE(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define FRONT_1(x, y) SHUFFLE(x, y, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30)
#define BACK_1(x, y) SHUFFLE(x, y, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31)
#elif LANES == 8
#define COUNT 0, 1, 2, 3, 4, 5, 6, 7
#define FRONT_4(x, y) SHUFFLE(x, y, 0, 1, 2, 3, 8, 9, 10, 11)
#define BACK_4(x, y) SHUFFLE(x, y, 4, 5, 6, 7, 12, 13, 14, 15)
#define FRONT_2(x, y) SHUFFLE(x, y, 0, 1, 8, 9, 4, 5, 12, 13)
#define BACK_2(x, y) SHUFFLE(x, y, 2, 3, 10, 11, 6, 7, 14, 15)
#define FRONT_1(x, y) SHUFFLE(x, y, 0, 8, 2, 10, 4, 12, 6, 14)
#define BACK_1(x, y) SHUFFLE(x, y, 1, 9, 3, 11, 5, 13, 7, 15)
#else
#define COUNT 0, 1, 2, 3
#define FRONT_2(x, y) SHUFFLE(x, y, 0, 1, 4, 5)
#define BACK_2(x, y) SHUFFLE(x, y, 2, 3, 6, 7)
#define FRONT_1(x, y) SHUFFLE(x, y, 0, 4, 2, 6)
#define BACK_1(x, y) SHUFFLE(x, y, 1, 5, 3, 7)
#endif

/* The sum of a vector's lanes, by halves: one after the other they would wait for each other. */
static inline float sum_of(vec x) {
    typedef float quarter __attribute__((vector_size(16)));
    union { vec whole; quarter parts[LANES / 4]; } of = {x};
#if LANES == 16
    quarter rest = (of.parts[0] + of.parts[2]) + (of.parts[1] + of.parts[3]);
#elif LANES == 8
    quarter rest = of.parts[0] + of.parts[1];
#else
    quarter rest = of.parts[0];
#endif
    return (rest[0] + rest[2]) + (rest[1] + rest[3]);
}

/* The sums of as many vectors' lanes as a vector has, in one: halves of two are added into one, again and again. */
static inline __attribute__((always_inline)) vec sums_of(vec *x) {
#if LANES == 16
    for (int i = 0; i < 8; i++) x[i] = FRONT_8(x[i], x[i + 8]) + BACK_8(x[i], x[i + 8]);
#endif
#if LANES >= 8
    for (int i = 0; i < 4; i++) x[i] = FRONT_4(x[i], x[i + 4]) + BACK_4(x[i], x[i + 4]);
#endif
    for (int i = 0; i < 2; i++) x[i] = FRONT_2(x[i], x[i + 2]) + BACK_2(x[i], x[i + 2]);
    return FRONT_1(x[0], x[1]) + BACK_1(x[0], x[1]);
}

#if defined(__AVX512BF16__) && LANES == 16
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
#else
static inline vec read_lanes(const void *from) {
    return (vec)(__builtin_convertvector(*(const narrow *)from, places) << 16);
}

static inline void write_lanes(void *to, vec x) { /* as store_bf16 */
    places bits = (places)x, rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    places is_nan = (places)((bits & 0x7FFFFFFF) > 0x7F800000);
    *(narrow *)to = __builtin_convertvector((rounded & ~is_nan) | (0x7FC0 & is_nan), narrow);
}
#endif

/* Memory that is read next, asked for piece by piece while something else is computed. */
struct ahead { const char *at, *end; int64_t piece; };

static inline struct ahead ahead_of(int64_t address, int64_t bytes, int64_t pieces) {
    const char *start = (const char *)address;
    return (struct ahead){start, start + bytes, (bytes / pieces + 64) / 64 * 64};
}

static inline void ask_for_piece(struct ahead *ahead) {
    const char *stop = ahead->at + ahead->piece < ahead->end ? ahead->at + ahead->piece : ahead->end;
    for (; ahead->at < stop; ahead->at += 64) __builtin_prefetch(ahead->at, 0, 3);
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

static inline vec choose(lanes where, vec x, vec y) { return (vec)((where & (lanes)x) | (~where & (lanes)y)); }

/* exp(x) for x <= 0, within 2e-7 of expf (Cephes' expf). Not by a loop over expf-like code, which compilers leave as it is. */
static inline vec exp_lanes(vec x) {
    const vec whole = (vec){0} + 12582912.0f; /* 1.5 * 2^23: what is added to it is rounded to a whole number */
    x = choose(x < -87.0f, (vec){0} - 87.0f, x);
    vec shifted = x * 1.44269504f + whole, n = shifted - whole;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = (vec){0} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (vec)(((lanes)shifted - (lanes)whole + 127) << 23);
}

static inline float largest_of(vec x) {
    float most = x[0];
    for (int i = 1; i < LANES; i++) most = x[i] > most ? x[i] : most;
    return most;
}

static inline vec size_of(vec x) { return (vec)((lanes)x & 0x7FFFFFFF); }

static inline vec sigmoid_of(vec x) {
    vec e = exp_lanes(-size_of(x));
    return choose(x < 0, e, (vec){0} + 1.0f) / (1.0f + e);
}

/* Scores of 16 cells (a vector of queries each) whose query may not see them become -inf. at: the first query's place,
 * counted from the block's first cell. */
static void hide_cells(vec *scores, int64_t at, int there, int causal, int64_t window) {
    const int32_t near = window < INT32_MAX ? (int32_t)window : INT32_MAX;
    const lanes places_of = (lanes){COUNT} + (int32_t)at;
    for (int c = 0; c < BLOCK; c++) {
        lanes ahead = c - places_of, hidden = (ahead >= near) | (-ahead >= near);
        if (causal) hidden |= ahead > 0;
        if (c >= there) hidden = ~(lanes){0};
        scores[c] = choose(hidden, (vec){0} - INFINITY, scores[c]);
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

static inline float as_float(int64_t bits) {
    int32_t low = (int32_t)bits;
    float value;
    memcpy(&value, &low, sizeof value);
    return value;
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

/* Kernels as replay.py wrote them down, one after the other: each its number, its type (0: bf16, 1: fp32) and its arguments in
 * order, addresses as numbers and floats as their bits. */
void replay(const int64_t *calls, int64_t num) {
    for (const int64_t *call = calls; call < calls + num * CALL; call += CALL) {
        const int64_t *a = call + 2;
        if (call[0] == LINEAR)
            linear_bf16((const bf16 *)a[0], a[1], a[2], a[3], (const bf16 *)a[4], (const float *)a[5], (bf16 *)a[6], a[7], a[8]);
        else if (call[1])
            call_f32((enum kernel)call[0], a);
        else
            call_bf16((enum kernel)call[0], a);
    }
}
