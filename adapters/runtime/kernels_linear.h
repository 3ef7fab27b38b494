/* Linear layers in bf16 for processors without matrix instructions of bf16 (oneDNN is faster there): kernels.c includes this.
 *
 * Weights lie in panels of 16 outputs, two inputs of each side by side, as vdpbf16ps takes them; without that instruction
 * they become fp32 in registers, which is no more than a shift, so that memory is read as bf16. An output is one chain of
 * products in ascending order of inputs, however many tokens there are: a token's numbers do not depend on its company.
 */
#if !defined(__AMX_BF16__) && !defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#include <omp.h>

#define WIDTH 16               /* outputs of a panel */
#define AHEAD 2048             /* bytes of weights asked for in advance */

/* Tokens and panels that one tile takes, so that their sums stay in registers. */
struct tile { int rows, panels; };

#ifdef __AVX512BF16__
#define NEAR (700 * 1024)      /* bytes of weights that stay in the second cache while tokens pass by */
#define MANY 8                 /* tokens of a tile when there are many, beside three panels: 24 sums */
#define FEW 16                 /* tokens of a tile when there are few, beside one panel: weights are read once */
#define MOST_PANELS 3
typedef uint32_t cell;         /* two inputs of a token */
#define CELLS 1                /* of two inputs */

static struct tile tile_for(int64_t tokens) {
    return tokens > MANY && tokens <= FEW ? (struct tile){FEW, 1} : (struct tile){MANY, MOST_PANELS};
}

static void fill_tile(const bf16 *x, int64_t stride, int num, int rows, int64_t pairs, cell *to) {
    pair_up(x, stride, num, rows, pairs, to);
}

/* Sums of rows tokens and panels panels, inlined so that both are known; the first num rows are stored. */
static inline __attribute__((always_inline)) void linear_tile(
    const cell *x, const bf16 *w, int64_t pairs, int rows, int panels, const float *bias, int num, bf16 *out,
    int64_t stride, int64_t outputs) {
    __m512 sums[FEW][MOST_PANELS];
    for (int i = 0; i < rows; i++)
        for (int p = 0; p < panels; p++) sums[i][p] = _mm512_setzero_ps();
    for (int64_t k = 0; k < pairs; k++) {
        __m512bh weights[MOST_PANELS];
        for (int p = 0; p < panels; p++) {
            const bf16 *line = w + (p * pairs + k) * 2 * WIDTH;
            weights[p] = (__m512bh)_mm512_loadu_si512(line);
            _mm_prefetch((const char *)line + AHEAD, _MM_HINT_T0);
        }
        for (int i = 0; i < rows; i++) {
            __m512bh pair = (__m512bh)_mm512_set1_epi32((int)x[k * rows + i]);
            for (int p = 0; p < panels; p++) sums[i][p] = _mm512_dpbf16_ps(sums[i][p], pair, weights[p]);
        }
    }
    for (int p = 0; p < panels; p++) {
        int64_t left = outputs - p * WIDTH;
        __mmask16 mask = left >= WIDTH ? 0xFFFF : (__mmask16)((1u << left) - 1);
        __m512 add = bias ? _mm512_maskz_loadu_ps(mask, bias + p * WIDTH) : _mm512_setzero_ps();
        for (int i = 0; i < rows; i++)
            if (i < num)
                _mm256_mask_storeu_epi16(out + i * stride + p * WIDTH, mask,
                                         (__m256i)_mm512_cvtneps_pbh(_mm512_add_ps(sums[i][p], add)));
    }
}

static void run_tile(struct tile tile, const cell *x, const bf16 *w, int64_t pairs, int panels, const float *bias, int num,
                     bf16 *out, int64_t stride, int64_t outputs) {
    if (tile.rows == FEW) linear_tile(x, w, pairs, FEW, 1, bias, num, out, stride, outputs);
    else if (panels == 3) linear_tile(x, w, pairs, MANY, 3, bias, num, out, stride, outputs);
    else if (panels == 2) linear_tile(x, w, pairs, MANY, 2, bias, num, out, stride, outputs);
    else linear_tile(x, w, pairs, MANY, 1, bias, num, out, stride, outputs);
}
#else
#define NEAR (256 * 1024)
#define PARTS (WIDTH / LANES)  /* vectors of a panel */
#define MANY (LANES == 16 ? 12 : LANES == 8 ? 6 : 3)
#define FEW 2                  /* tokens of a tile when there are few, beside three panels: sums do not wait for each other */
#define MOST_PANELS 3
typedef float cell;            /* an input of a token, as many of one token's side by side */
#define CELLS 2

static struct tile tile_for(int64_t tokens) {
    return tokens <= FEW ? (struct tile){FEW, MOST_PANELS} : (struct tile){MANY, 1};
}

static void fill_tile(const bf16 *x, int64_t stride, int num, int rows, int64_t pairs, cell *to) {
    for (int i = 0; i < rows; i++)
        for (int64_t k = 0; k < 2 * pairs; k += LANES)
            *(vec *)(to + i * 2 * pairs + k) = read_lanes(x + (i < num ? i : num - 1) * stride + k);
}

/* As above; the first inputs of pairs are the low halves of their line. */
static inline __attribute__((always_inline)) void linear_tile(
    const cell *x, const bf16 *w, int64_t pairs, int rows, int panels, const float *bias, int num, bf16 *out,
    int64_t stride, int64_t outputs) {
    vec sums[MANY][MOST_PANELS * PARTS];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < panels * PARTS; v++) sums[i][v] = (vec){0};
    for (int64_t k = 0; k < pairs; k++)
        for (int half = 0; half < 2; half++) {
            vec weights[MOST_PANELS * PARTS];
            for (int v = 0; v < panels * PARTS; v++) {
                const bf16 *line = w + (v / PARTS * pairs + k) * 2 * WIDTH + v % PARTS * 2 * LANES;
                places both = (places)(vec)*(const anywhere *)line;
                weights[v] = half ? (vec)(both & 0xFFFF0000) : (vec)(both << 16);
                if (!half) __builtin_prefetch((const char *)line + AHEAD, 0, 3);
            }
            for (int i = 0; i < rows; i++)
                for (int v = 0; v < panels * PARTS; v++) sums[i][v] += x[i * 2 * pairs + 2 * k + half] * weights[v];
        }
    for (int v = 0; v < panels * PARTS && v * LANES < outputs; v++) {
        vec add = bias ? read_f32(bias + v * LANES, outputs - v * LANES) : (vec){0};
        for (int i = 0; i < rows; i++)
            if (i < num) write_bf16(out + i * stride + v * LANES, sums[i][v] + add, outputs - v * LANES);
    }
}

static void run_tile(struct tile tile, const cell *x, const bf16 *w, int64_t pairs, int panels, const float *bias, int num,
                     bf16 *out, int64_t stride, int64_t outputs) {
    if (tile.rows == MANY && num > MANY * 2 / 3) linear_tile(x, w, pairs, MANY, 1, bias, num, out, stride, outputs);
    else if (tile.rows == MANY && num > MANY / 3) linear_tile(x, w, pairs, MANY * 2 / 3, 1, bias, num, out, stride, outputs);
    else if (tile.rows == MANY) linear_tile(x, w, pairs, MANY / 3, 1, bias, num, out, stride, outputs);
    else if (panels == 3) linear_tile(x, w, pairs, FEW, 3, bias, num, out, stride, outputs);
    else if (panels == 2) linear_tile(x, w, pairs, FEW, 2, bias, num, out, stride, outputs);
    else linear_tile(x, w, pairs, FEW, 1, bias, num, out, stride, outputs);
}
#endif

int has_linear(void) { return 1; }

/* out = x W^T + bias. x: [tokens, inputs]; w: [panels, inputs / 2, 16, 2]; bias: [outputs] in fp32, or null. Inputs must
 * be a multiple of 16; w ends with zeros where outputs is not. */
void linear_bf16(const bf16 *x, int64_t x_stride, int64_t tokens, int64_t inputs, const bf16 *w, const float *bias,
                 bf16 *out, int64_t out_stride, int64_t outputs) {
    int64_t pairs = inputs / 2, panels = (outputs + WIDTH - 1) / WIDTH;
    struct tile tile = tile_for(tokens);
    int64_t together = tile.panels, groups = (panels + together - 1) / together;
#pragma omp parallel
    {
        int64_t num = omp_get_num_threads(), own = omp_get_thread_num();
        int64_t first = groups * own / num * together, stop = groups * (own + 1) / num * together;
        if (stop > panels) stop = panels;
        int64_t near = NEAR / (inputs * 2 * WIDTH) / together * together;
        if (near < together) near = together;
        if (tokens <= tile.rows) near = panels;
        cell lines[pairs * CELLS * tile.rows] __attribute__((aligned(64)));
        for (int64_t begin = first; begin < stop; begin += near) {
            int64_t end = begin + near < stop ? begin + near : stop;
            for (int64_t t = 0; t < tokens; t += tile.rows) {
                int left = tokens - t < tile.rows ? (int)(tokens - t) : tile.rows;
                fill_tile(x + t * x_stride, x_stride, left, tile.rows, pairs, lines);
                for (int64_t p = begin; p < end; p += together)
                    run_tile(tile, lines, w + p * inputs * WIDTH, pairs, (int)(end - p < together ? end - p : together),
                             bias ? bias + p * WIDTH : 0, left, out + t * out_stride + p * WIDTH, out_stride,
                             outputs - p * WIDTH);
            }
        }
    }
}
#else
int has_linear(void) { return 0; }
void linear_bf16(const bf16 *x, int64_t x_stride, int64_t tokens, int64_t inputs, const bf16 *w, const float *bias,
                 bf16 *out, int64_t out_stride, int64_t outputs) {}
#endif
