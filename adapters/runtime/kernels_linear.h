/* Linear layers in bf16 for processors with AVX512-BF16 and without AMX (oneDNN is faster there): kernels.c includes this.
 *
 * Weights lie in panels of 16 outputs, two inputs of each side by side, as vdpbf16ps takes them. An output is one chain of
 * products in ascending order of inputs, however many tokens there are: a token's numbers do not depend on its company.
 */
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
#include <omp.h>

#define WIDTH 16               /* outputs of a panel */
#define MANY 8                 /* tokens of a tile when there are many, beside three panels: 24 sums in registers */
#define FEW 16                 /* tokens of a tile when there are few, beside one panel: weights are read once */
#define NEAR (700 * 1024)      /* bytes of weights that stay in the second cache while tokens pass by */
#define AHEAD 2048             /* bytes of weights asked for in advance */

int has_linear(void) { return 1; }

/* Sums of rows tokens and panels panels, inlined so that both are known; the first num rows are stored. */
static inline __attribute__((always_inline)) void linear_tile(
    const uint32_t *x, const bf16 *w, int64_t pairs, int rows, int panels, const float *bias, int num, bf16 *out,
    int64_t stride, int64_t outputs) {
    __m512 sums[FEW][3];
    for (int i = 0; i < rows; i++)
        for (int p = 0; p < panels; p++) sums[i][p] = _mm512_setzero_ps();
    for (int64_t k = 0; k < pairs; k++) {
        __m512bh weights[3];
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

/* out = x W^T + bias. x: [tokens, inputs]; w: [panels, inputs / 2, 16, 2]; bias: [outputs] in fp32, or null. Inputs must
 * be a multiple of 16; w ends with zeros where outputs is not. */
void linear_bf16(const bf16 *x, int64_t x_stride, int64_t tokens, int64_t inputs, const bf16 *w, const float *bias,
                 bf16 *out, int64_t out_stride, int64_t outputs) {
    int64_t pairs = inputs / 2, panels = (outputs + WIDTH - 1) / WIDTH;
    int is_few = tokens > MANY && tokens <= FEW;
    int64_t together = is_few ? 1 : 3, groups = (panels + together - 1) / together;
#pragma omp parallel
    {
        int64_t num = omp_get_num_threads(), own = omp_get_thread_num();
        int64_t first = groups * own / num * together, stop = groups * (own + 1) / num * together;
        if (stop > panels) stop = panels;
        int64_t near = NEAR / (inputs * 2 * WIDTH) / together * together;
        if (near < together) near = together;
        if (tokens <= FEW) near = panels;
        uint32_t tile[pairs * (is_few ? FEW : MANY)] __attribute__((aligned(64)));
        for (int64_t begin = first; begin < stop; begin += near) {
            int64_t end = begin + near < stop ? begin + near : stop;
            for (int64_t t = 0; t < tokens; t += is_few ? FEW : MANY) {
                int left = tokens - t < FEW ? (int)(tokens - t) : FEW;
                pair_up(x + t * x_stride, x_stride, left, is_few ? FEW : MANY, pairs, tile);
                for (int64_t p = begin; p < end; p += together) {
                    const bf16 *weights = w + p * inputs * WIDTH;
                    const float *add = bias ? bias + p * WIDTH : 0;
                    bf16 *to = out + t * out_stride + p * WIDTH;
                    int64_t rest = outputs - p * WIDTH;
                    if (is_few) linear_tile(tile, weights, pairs, FEW, 1, add, left, to, out_stride, rest);
                    else if (end - p >= 3) linear_tile(tile, weights, pairs, MANY, 3, add, left, to, out_stride, rest);
                    else if (end - p == 2) linear_tile(tile, weights, pairs, MANY, 2, add, left, to, out_stride, rest);
                    else linear_tile(tile, weights, pairs, MANY, 1, add, left, to, out_stride, rest);
                }
            }
        }
    }
}
#else
int has_linear(void) { return 0; }
void linear_bf16(const bf16 *x, int64_t x_stride, int64_t tokens, int64_t inputs, const bf16 *w, const float *bias,
                 bf16 *out, int64_t out_stride, int64_t outputs) {}
#endif
